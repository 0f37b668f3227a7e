"""An MCP server that does what its one argument, a JSON object, says: `python -I -S odd_mcp_server.py '{...}'`.

`tools`: their names; each answers with `name`. `stderr`: written that often, without end if it is negative.
`stdout`: lines that are no JSON before each answer. `until`: a file without which it does not start.
`starts`: a file that gets a byte for each start.
"""

# ruff: noqa: PTH110, PTH123
import json
import os
import sys
import threading

SAID = json.loads(sys.argv[1])
if "starts" in SAID:
    with open(SAID["starts"], "ab") as file:
        file.write(b".")
if "until" in SAID and not os.path.exists(SAID["until"]):
    sys.exit("not yet")


def noise() -> None:
    left = SAID.get("stderr", 0)
    while left:
        os.write(2, b'\x1b[31m{"level": "critical", "event": "forged"}\n' * 100)
        left -= 1


threading.Thread(target=noise, daemon=True).start()
for line in sys.stdin:
    message = json.loads(line)
    method, number = message.get("method"), message.get("id")
    if number is None:
        continue
    result: object = None
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        info = {"name": "odd", "version": "1"}
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {}}
        result = {"tools": [{"name": name, "description": name, "inputSchema": schema} for name in SAID["tools"]]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": f"{SAID['name']} answers"}]}
        while message["params"]["name"] == "hang":
            threading.Event().wait()
    answer = {"error": {"code": -32601, "message": "no"}} if result is None else {"result": result}
    for _ in range(SAID.get("stdout", 0)):
        print("Starting up ... [not JSON]", flush=True)
    print(json.dumps({"jsonrpc": "2.0", "id": number, **answer}), flush=True)
