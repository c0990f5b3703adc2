"""The tiny base checkpoint, pretrained on pictures of the tabletop."""
