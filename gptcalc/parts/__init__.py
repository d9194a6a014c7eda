"""The parts of a decoder: each lists its weights once, as data; everything else folds over the rows."""
