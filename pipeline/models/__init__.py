"""The transformer where the methods cut in: attention, blocks, layer schedule, backbones."""
