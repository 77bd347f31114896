"""Parts of kernels: compiled functions that only compiled functions call.

A kernel's code contains that of all that it calls. So a part needs no entry for Python, and no machine code: what is
kept of it is LLVM's code (numba: "bitcode"), which is optimised and translated with the kernels that it ends up in.
A process that finds its kernels compiled never looks at their parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding
from numba.core import caching, codegen, compiler

from oneshot_ml2.common import kernels

_Library: Any = codegen.JITCodeLibrary
_Pipeline: Any = compiler.Compiler
_Results: Any = caching.CompileResultCacheImpl
_Cache: Any = caching.FunctionCache


class _Code(_Library):  # type: ignore[misc]
    """LLVM code that other libraries take in; nothing of it is ever run by itself."""

    def _optimize_final_module(self) -> None:
        # What numba does first: calls are inlined and references pruned. The rest is done where it ends up.
        passes, builder = self._codegen._module_pass_manager(
            loop_vectorize=False, slp_vectorize=False, opt=0, cost="cheap"
        )
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _Compiler(_Pipeline):  # type: ignore[misc]
    """numba's compiler, up to LLVM's code."""

    def define_pipelines(self) -> Any:
        self.state.flags.no_compile = True
        self.state.library = _Code(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


class _Kept(_Results):  # type: ignore[misc]
    """How a compiled part is written to a file, and read from it."""

    def reduce(self, result: Any) -> Any:
        # Types of the function's inside, which callers do not ask for and cannot all be pickled.
        result.fndesc.typemap = result.fndesc.calltypes = None
        code = result.library._get_module_for_linking().as_bitcode()
        environments = result._find_referenced_environments()
        return result.library.name, code, result.fndesc, result.signature, environments, result.reload_init

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        name, code, fndesc, signature, environments, reload_init = payload
        library = _Code(target_context.codegen(), name)
        library._shared_module = library._final_module = binding.parse_bitcode(code)
        library._finalized = True
        fields = dict.fromkeys(compiler.CR_FIELDS) | {
            "target_context": target_context,
            "typing_context": target_context.typing_context,
            "library": library,
            "fndesc": fndesc,
            "signature": signature,
            "objectmode": False,
            "lifted": (),
            "reload_init": reload_init,
            "referenced_envs": environments,
        }
        return compiler.CompileResult(**fields)


class _PartCache(_Cache):  # type: ignore[misc]
    _impl_class = _Kept


def part(*signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator as `kernels.njit`, for functions that only compiled functions call.

    ``signature``: types of arguments and result, one for all callers; they are compiled when a caller needs them.

    Raises:
        TypeError: it is called from Python.
    """
    decorate: Any = numba.njit

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = decorate(pipeline_class=_Compiler, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(
            function
        )
        kernels.keep(dispatcher, _PartCache)
        dispatcher.add_overload = functools.partial(_add, dispatcher)
        dispatcher._compile_for_args = functools.partial(_refuse, function.__name__)
        if signature:
            dispatcher.get_call_template = functools.partial(_template, dispatcher, signature)
        return dispatcher

    return compiled


def _add(dispatcher: Any, result: Any) -> None:
    """What numba does with a result; in place of a function for Python stands something that only tells it apart."""
    key = object()
    result.target_context.insert_user_function(key, result.fndesc, [result.library])
    dispatcher.overloads[tuple(result.signature.args)] = result._replace(entry_point=key)


def _template(dispatcher: Any, signature: tuple[Any, ...], args: Any, kws: Any) -> Any:
    """How a call with arguments of some types is typed: as of the ``signature``, and compiled for nothing else."""
    if dispatcher._can_compile:
        for types in signature:
            dispatcher.compile(types)
        dispatcher.disable_compile()
    return type(dispatcher).get_call_template(dispatcher, args, kws)


def _refuse(name: str, *args: Any, **kws: Any) -> Any:
    raise TypeError(f"{name} is a part of kernels, which Python cannot call; decorate it with njit")
