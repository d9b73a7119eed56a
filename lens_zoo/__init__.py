"""The zoo: models of the common libraries, each run, recorded and validated; ``python -m lens_zoo``.

Not part of the installed package: it needs the libraries, minutes to hours, and Linux (processes are forked).
"""
