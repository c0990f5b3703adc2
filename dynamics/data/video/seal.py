"""A filter of system calls: what a process may still ask of the kernel after `seal`.

seccomp's filters are inherited, cannot be removed, and need no privilege. A process that may
neither open a file nor make a socket reads what it was handed and writes what it was handed,
nothing else. What is refused fails with EPERM, which libraries take for a system that lacks it.
"""

import ctypes
import errno
import platform
import struct
import sys

_ALLOWED: dict[str, dict[str, int]] = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9,
        "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
        "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20, "sched_yield": 24,
        "mremap": 25, "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39, "recvfrom": 45,
        "recvmsg": 47, "clone": 56, "exit": 60, "fcntl": 72, "getrusage": 98, "sigaltstack": 131,
        "gettid": 186, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219,
        "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
        "newfstatat": 262, "set_robust_list": 273, "prlimit64": 302, "getrandom": 318,
        "statx": 332, "rseq": 334, "clone3": 435,
    },
    "aarch64": {
        "dup": 23, "fcntl": 25, "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65,
        "writev": 66, "pread64": 67, "ppoll": 73, "newfstatat": 79, "fstat": 80, "exit": 93,
        "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101,
        "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
        "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getrusage": 165,
        "getpid": 172, "gettid": 178, "recvfrom": 207, "recvmsg": 212, "brk": 214, "munmap": 215,
        "mremap": 216, "clone": 220, "mmap": 222, "mprotect": 226, "madvise": 233,
        "prlimit64": 261, "getrandom": 278, "statx": 291, "rseq": 293, "clone3": 435,
    },
}  # fmt: skip
"""Numbers of the system calls that decoding needs, by machine."""
_ARCHITECTURES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
"""The kernel's name of the machine, and the number of `seccomp` itself."""

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ARCH_OFFSET, _NUMBER_OFFSET, _ARGUMENTS_OFFSET = 4, 0, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM = (_RETURN, 0, 0, _ERROR | errno.EPERM)
_OK = (_RETURN, 0, 0, _ALLOW)
_PROT_EXEC, _CLONE_THREAD, _RLIMIT_CPU = 4, 0x10000, 0
_PR_SET_NO_NEW_PRIVS, _SECCOMP_SET_MODE_FILTER, _ALL_THREADS = 38, 1, 1

_Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def seal() -> str | None:
    """Leave this process the calls that decoding needs, for good; else the reason why not.

    Neither files nor sockets can be opened, programs or processes started, code mapped, other
    processes reached, or limits raised. Threads may be started. Names and sizes of files can still
    be looked up.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ALLOWED or sys.byteorder != "little":
        return f"no filter of system calls for {sys.platform} on {machine}"
    code = b"".join(struct.pack("<HBBI", *one) for one in _program(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    number = _ARCHITECTURES[machine][1]
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        number, _SECCOMP_SET_MODE_FILTER, _ALL_THREADS, program
    ):
        return f"the kernel takes no filter of system calls (error {ctypes.get_errno()})"
    return None


def _program(machine: str) -> list[_Instruction]:
    """The filter as the kernel's virtual machine reads it."""
    program = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine][0]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]
    for name, number in _ALLOWED[machine].items():
        verdict = _VERDICTS.get(name, [_OK])
        program += [(_EQUAL, 0, len(verdict), number), *verdict]
    return [*program, _EPERM]


def _argument(position: int) -> _Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * position)


_NO_CODE = [_argument(2), (_ANY_BIT, 0, 1, _PROT_EXEC), _EPERM, _OK]
_VERDICTS: dict[str, list[_Instruction]] = {
    "mmap": _NO_CODE,
    "mprotect": _NO_CODE,
    "clone": [_argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), _EPERM, _OK],
    # Its flags lie in memory, where a filter cannot look; the C library then takes `clone`.
    "clone3": [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)],
    "prlimit64": [
        _argument(0),
        (_EQUAL, 0, 2, 0),
        _argument(1),
        (_EQUAL, 1, 0, _RLIMIT_CPU),
        _EPERM,
        _OK,
    ],
}
"""Calls that are allowed with some arguments only."""
