"""Which models of torchvision and timm are in the zoo: one for each way of building a network."""

from __future__ import annotations

CLASSIFICATION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t",
    "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
VIDEO = ("mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t")
DETECTION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
OPTICAL_FLOW = ("raft_small", "raft_large")
SIDES = {"inception_v3": 75, "maxvit_t": 224, "s3d": 224, "ssd300_vgg16": 300}

# One model of each of timm's module files, the smallest; then members of families that are built otherwise.
TIMM_FILES = {
    "beit": "beit_base_patch16_224", "byoanet": "halonet_h1", "byobnet": "mobileone_s0", "cait": "cait_xxs24_224",
    "coat": "coat_tiny", "convit": "convit_tiny", "convmixer": "convmixer_768_32", "convnext": "convnext_atto",
    "cpubone": "cpubone_nano", "crossvit": "crossvit_tiny_240", "csatv2": "csatv2", "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny", "davit": "davit_tiny", "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_distilled_patch16_224", "densenet": "densenetblur121d", "dla": "dla34", "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small", "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0", "efficientnet": "tinynet_e", "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0", "efficientvit_msra": "efficientvit_m0", "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0", "fastvit": "fastvit_t8", "focalnet": "focalnet_tiny_srf", "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m", "ghostnet": "ghostnet_050", "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnetv2_b0", "hiera": "hiera_tiny_224", "hieradet_sam2": "hieradet_small", "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t", "inception_next": "inception_next_atto", "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3", "inception_v4": "inception_v4", "lcnetv2": "lcnetv2_small", "levit": "levit_128",
    "lowformer": "lowformer_b0", "mambaout": "test_mambaout", "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12", "mlp_mixer": "gmlp_ti16_224", "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base", "mobilevit": "mobilevit_xxs", "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap", "nasnet": "nasnetalarge", "nest": "nest_tiny",
    "nextvit": "nextvit_small", "nfnet": "nf_regnet_b0", "pit": "pit_ti_distilled_224", "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0", "qwen3_vit": "qwen3_vit_88m", "rdnet": "rdnet_tiny", "regnet": "regnetx_002",
    "repghost": "repghostnet_050", "repvit": "repvit_m0_9", "res2net": "res2net50_14w_8s", "resnest": "resnest14d",
    "resnet": "resnet10t", "resnetv2": "resnetv2_18", "rexnet": "rexnet_100", "selecsls": "selecsls42",
    "senet": "legacy_seresnet18", "sequencer": "sequencer2d_s", "shvit": "shvit_s1", "sknet": "skresnet18",
    "starnet": "starnet_s050", "swiftformer": "swiftformer_xs", "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256", "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224", "tnt": "tnt_s_patch16_224", "tresnet": "tresnet_m", "twins": "twins_svt_small",
    "vgg": "vgg11", "visformer": "visformer_tiny", "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224", "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224", "vitamin": "vitamin_small_224", "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw", "xception": "legacy_xception", "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p16_224",
}  # fmt: skip
TIMM_FAMILIES = (
    "bat_resnext26ts", "beit3_base_patch16_224", "beitv2_base_patch16_224", "botnet26t_256", "coatnet_pico_rw_224",
    "convformer_s18", "convnextv2_atto", "eca_halonext26ts", "eca_nfnet_l0", "eca_vovnet39b", "ecaresnet26t",
    "efficientnet_cc_b0_4e", "flexivit_small", "gcresnext26ts", "ghostnetv2_100", "gmixer_12_224", "lambda_resnet26t",
    "levit_conv_128", "mixer_s16_224", "mobilenetv4_hybrid_medium", "mobilevitv2_050", "regnetz_005", "resmlp_12_224",
    "resnetv2_50d_frn", "sebotnet33ts_256", "swin_s3_tiny_224", "twins_pcpvt_small", "vit_pe_core_tiny_patch16_384",
)  # fmt: skip
# Fewer blocks of the same kind are enough.
SHALLOW = (
    "beit3_base_patch16_224", "beit_base_patch16_224", "beitv2_base_patch16_224", "cait_xxs24_224", "convit_tiny",
    "convmixer_768_32", "deepseek_vit_412m", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224",
    "flexivit_small", "gemma4_vit_167m", "gmixer_12_224", "gmlp_ti16_224", "mixer_s16_224",
    "naflexvit_base_patch16_gap", "qwen3_vit_88m", "resmlp_12_224", "samvit_base_patch16_224", "tnt_s_patch16_224",
    "vit_pe_core_tiny_patch16_384", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "xcit_nano_12_p16_224",
)  # fmt: skip
SHALLOW_STAGES = (
    "davit_tiny", "focalnet_tiny_srf", "mvitv2_tiny", "swin_s3_tiny_224", "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224", "swinv2_tiny_window8_256",
)  # fmt: skip
