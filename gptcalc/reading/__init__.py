"""Files that describe a model -> one flat mapping of fields, as Hugging Face or gptcalc names them.

`files` opens what it is given (JSON, TOML, Python that is parsed, never run); `python` reads literals; `choice` finds
the one object that is meant; `nested` finds the language model inside a multimodal one; `dialects` translates the names
of nanoGPT, LLMs-from-scratch and Llama's own code. Nothing here knows a formula, and nothing is imported before a file
is read.
"""
