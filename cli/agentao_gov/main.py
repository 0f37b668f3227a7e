"""The entry point: owns exit codes, signals and the end of the process.

Importing this module costs nothing: `--help` is shown from a prepared text (`helptext.py`), and Typer, Rich and the
command's own module are imported only when a command runs.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, TextIO

from agentao_gov import helptext
from agentao_gov.errors import GovError, InternalError
from agentao_gov.report import failures

# After the last word: how long threads that are not daemons may still hold the process.
_THREADS_GRACE_S = 2.0


def main(argv: list[str] | None = None) -> None:
    """The entry point: runs a command and ends the process with the contract's exit code."""
    args = sys.argv[1:] if argv is None else argv
    if argv is None:
        _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        _make_writable(stream)
    if (text := helptext.prepared(args)) is not None:
        sys.exit(_help(text))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # Put there while the program was loaded, by the package itself.
            signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run_command(args)
    if argv is not None:
        # Called by a program, whose threads are its own.
        sys.exit(code)
    _leave(code)


def _help(text: str) -> int:
    try:
        sys.stdout.write(text)
    except OSError as error:
        return _lost(sys.stdout, error, 0)
    return _flush(0)


def _open_standard_streams() -> None:
    """A stream that the caller closed (`>&-`) becomes the null device: else the next file opened would take its place,
    and what is printed would go there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. For children, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for the whole process


def _make_writable(stream: TextIO) -> None:
    """Whatever a model says can be written: an answer that was paid for must not be lost to the locale.

    What programs read is UTF-8; a terminal keeps its own encoding, with `?` for what it does not have.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    # As an exception, so that `finally` blocks close sessions and their processes.
    raise SystemExit(143)


def run_command(args: list[str]) -> int:
    """Runs one command in this process; returns its exit code. Installs no signal handlers."""
    try:
        return _outcome(args)
    except KeyboardInterrupt:
        # Before the command was there to see it, or while it closed.
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`). What a shell reports for SIGPIPE.
        _to_null(sys.stdout)
        return 141


def _outcome(args: list[str]) -> int:
    import typer

    from agentao_gov.commands._app import application

    as_json = failures.wants_json(args)
    try:
        result = application().main(args, prog_name="agentao-gov", standalone_mode=False)
    except GovError as error:
        return failures.report_gov_error(error, as_json)
    except typer.TyperException as error:
        return failures.report_usage(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        raise
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            # Typer's own ending for it is 1, which says that a gate failed.
            raise end.__context__ from None
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        # The last resort: one line for people, the traceback in a file.
        return failures.report_unexpected(error, as_json)
    return result if isinstance(result, int) else 0


def _to_null(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())


def _leave(code: int) -> None:
    """Ends the process, also when an abandoned thread would keep it alive for ever."""
    if threading.current_thread() is threading.main_thread():
        # Everything is closed: who presses Ctrl-C again need not wait for the last threads.
        signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(code))
    code = _flush(code)
    _retire_pools()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(_THREADS_GRACE_S)
            if thread.is_alive():
                os._exit(code)
    # What was to be done at the end is done here. Taking the interpreter apart takes a while with agentao in it, and it
    # gives signals their default effect back first: an impatient second Ctrl-C would replace the code by a death of
    # SIGINT.
    atexit._run_exitfuncs()
    os._exit(_flush(code))


def _retire_pools() -> None:
    """Tells the idle workers of thread pools that nobody closed to go home, as the interpreter does at its end.

    agentao keeps one for the pages that `web_fetch` reads: the process would wait out the grace for it, and then end
    without what was to be done at the end.
    """
    pools: Any = sys.modules.get("concurrent.futures.thread")
    if pools is None:
        return
    with pools._global_shutdown_lock:
        pools._shutdown = True
    for queue in list(pools._threads_queues.values()):
        queue.put(None)


def _lost(stream: TextIO, error: OSError, code: int) -> int:
    """The code to end with where a stream did not take what was written."""
    _to_null(stream)
    if code:
        return code
    if isinstance(error, BrokenPipeError):
        # The reader left (`| head`). What a shell reports for SIGPIPE.
        return 141
    with contextlib.suppress(OSError):
        sys.stderr.write(f"agentao-gov: The output could not be written: {error.strerror}\n")
    return InternalError.ending.exit_code


def _flush(code: int) -> int:
    """The code to end with: output that could not be written, on a full disk for one, is not a success."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            code = _lost(stream, error, code)
    return code


if __name__ == "__main__":
    main()
