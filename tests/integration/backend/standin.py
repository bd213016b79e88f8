"""A stand-in for the guest: runs each line of Python that the host sends and answers with a value.

Standard library only. A line is a JSON string of source that sets ``answer``; the reply is one JSON
line ``{"answer": ...}`` or ``{"error": "TypeName: text"}``.
"""

GUEST = """
import json, os, sys
os.write(1, b'"ready"\\n')
scope = {"os": os}
for line in sys.stdin.buffer:
    scope["answer"] = None
    try:
        exec(json.loads(line), scope)
        reply = {"answer": scope["answer"]}
    except BaseException as exc:
        reply = {"error": f"{type(exc).__name__}: {exc}"}
    data = json.dumps(reply).encode() + b"\\n"
    while data:
        data = data[os.write(1, data):]
"""
