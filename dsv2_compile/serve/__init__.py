"""An engine behind HTTP, in the words of OpenAI's API. Needs `pip install 'dsv2-compile[serve]'`.

server.py is the process: its socket, its thread, how it ends. app.py has the paths and what guards them. A request
becomes an `Asked` (fields.py, chat.py), then a `Running` (running.py), whose tokens answers.py puts into words.
"""

from dsv2_compile.serve.options import Options
from dsv2_compile.serve.server import Server

__all__ = ["Options", "Server"]
