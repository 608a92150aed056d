"""The replicated state, numpy only: tensors and chunk tree, roster, outer step, certificates, the chain."""
