"""Running a command: any failure becomes one line on standard error and an exit code, never a traceback."""

import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection
from typing import NoReturn, TextIO

from common.devices import default_to_cpu, is_out_of_memory, memory_shortage, set_gpu_defaults
from common.errors import UserError
from common.io.mirror import with_addresses
from common.io.stores import staging
from common.io.terminal import printable
from common.process.host_watch import ending_of, watch
from common.process.hosts import initialize_distributed
from common.process.stopping import Stopped, handled, held, received, say_last

LONGEST_MESSAGE = 2_000  # characters
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk says


def run_cli(
    main: Callable[[list[str]], int | None],
    argv: list[str] | None = None,
    hosts: Collection[str] = (),
    apart: Collection[str] = (),
) -> None:
    """Run a command, with other hosts if the environment names some and `hosts` has its first argument.

    On several hosts, a command whose first argument is in `apart` runs on each as if it were alone.

    A UserError becomes one line on standard error and exit code 2, and so do a device that has too little memory and a
    full disk. SIGTERM and SIGINT become one line and the exit codes of `common.process.stopping`.
    """
    default_to_cpu()
    set_gpu_defaults()
    # Of transformers only the tokenizers are used: it need not say that PyTorch is not there.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.showwarning = _show_warning
    try:
        with handled():
            try:
                words = sys.argv[1:] if argv is None else argv
                code = _run(main, words, hosts, joins=next(iter(words), "") not in apart)
            except BaseException as error:
                _leave_hosts(error)
                if argv is None and received() and isinstance(error, SystemExit):
                    _flush()
                    # What a signal left half-way, such as a compilation, may crash Python while it tidies up.
                    os._exit(error.code if isinstance(error.code, int) else 1)
                raise
            _leave_hosts(None)
    except Stopped as stop:  # before the command began, or after it was done
        _end(stop.code, str(stop))
    raise SystemExit(code or 0)


def _run(main: Callable[[list[str]], int | None], argv: list[str], hosts: Collection[str], joins: bool) -> int | None:
    """The exit code of `main`. Raises SystemExit where it ends otherwise."""
    try:
        code = _together(main, argv, hosts) if joins else _with_copies(main, argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        _end(2, str(error))
    except RuntimeError as error:  # JAX's own kind is one
        if not is_out_of_memory(error):
            raise
        _end(2, out_of_memory(str(error)))
    except MemoryError as error:
        _end(2, out_of_memory(str(error)))
    except BrokenPipeError:
        _end(1)
    except Stopped as stop:
        _end(stop.code, str(stop))
    except KeyboardInterrupt:
        _end(130, "interrupted")  # as a shell has it: 128 + SIGINT
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _end(2, f"{error.filename}: is too long for a file name; give a shorter one")
        if error.errno not in FULL:
            raise
        _end(2, f"{error.filename or 'a file or standard output'}: cannot be written ({error.strerror}); make room")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A library's warning in one line, without the line of its source that raised it."""
    print("warning: " + printable(" ".join(str(message).split()), LONGEST_MESSAGE), file=sys.stderr, flush=True)


def _together(main: Callable[[list[str]], int | None], argv: list[str], hosts: Collection[str]) -> int | None:
    """The exit code of `main`, after the hosts have joined; where another of them is lost, the command ends so."""
    if not initialize_distributed(argv, hosts):
        return _with_copies(main, argv)
    try:
        return _with_copies(main, argv)
    except Exception as error:  # what collectives raise has no type of its own
        ending = ending_of(error)
        if ending is None:
            raise
        _end(*ending)


def _with_copies(main: Callable[[list[str]], int | None], argv: list[str]) -> int | None:
    """The exit code of `main`, to which addresses of stores are paths."""
    with staging(argv) as arguments:
        return main(arguments)


def _leave_hosts(error: BaseException | None) -> None:
    """Tell other hosts how this one ends. After an error the process ends here: JAX would wait for them as it does."""
    here = watch()
    if here is None:
        return
    with held():
        code = error.code if isinstance(error, SystemExit) else int(error is not None)
        if not code:
            here.leave(0)
            return
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        _flush()
        code = code if isinstance(code, int) else 1
        here.leave(code)
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def _end(code: int, message: str = "") -> NoReturn:
    """Say the message in one line and exit. A signal changes nothing of that."""
    with held():
        try:
            sys.stdout.flush()
        except OSError:
            # What it still holds would be refused once more when Python ends, with another message and another code.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if message:
            line = "error: " + printable(with_addresses(" ".join(message.split())), LONGEST_MESSAGE)
            say_last(line, lambda line: print(line, file=sys.stderr, flush=True))
        raise SystemExit(code) from None


def out_of_memory(message: str) -> str:
    """What XLA says of a device that has too little memory, in one line with what to do."""
    return (
        f"{memory_shortage(message)}; lower micro_batch, batch_size or max_length, set "
        "model.remat to full, or split the parameters over more devices (parallel mesh, mesh.fsdp -1, mesh.data 1)"
    )
