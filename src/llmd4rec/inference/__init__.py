"""Answers: recommendations with filters, reasons, similar items, new items. Needs no PyTorch for exports."""
