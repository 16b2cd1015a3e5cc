"""Runs pkilint's programs, the arguments of each in one argument with tabs between, and prints what they find above INFO."""

import contextlib
import importlib
import io
import sys

for run in sys.argv[1:]:
    program, command, *files = run.split("\t")
    main = importlib.import_module(f"pkilint.bin.{program}").main
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main([command, "-s", "NOTICE", "-f", "CSV", *files])
    heading, *findings = text.getvalue().strip().splitlines()
    if "severity" not in heading:
        sys.exit(f"{program} {files}: {text.getvalue()}")
    for finding in findings:
        print(*files, finding)
print(len(sys.argv) - 1, "runs")
