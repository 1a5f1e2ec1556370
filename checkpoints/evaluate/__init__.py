"""How good a checkpoint is on prompts and edits that no training has seen."""
