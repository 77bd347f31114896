"""Who runs programs and times them."""
