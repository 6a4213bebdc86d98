"""Turn pretrained LLMs into shifts, look-ups and adds, and compile them with Apache TVM."""
__version__ = "0.1.0"
