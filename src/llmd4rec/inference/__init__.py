"""Serving recommendations: filters, reasons, similar items, new items. An export is served without PyTorch."""
