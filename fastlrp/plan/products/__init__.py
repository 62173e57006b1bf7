"""How a layer's products are computed: by Winograd's filtering, of bfloat16, with weights laid out ahead."""
