#!/usr/bin/env python3
"""A process that takes a stated amount of a device's memory and computes there. Its driver calls are CUDA's driver API alone; nothing is compiled.

    cuda_process.py BYTES hold|compute|fault

Writes `ready` when it has the memory. `hold` waits, `compute` keeps the device busy, `fault` writes where it has no memory, once it is told to
by a line on its standard input, and ends with what the driver says of that. The device is the first that CUDA_VISIBLE_DEVICES leaves.
"""
import ctypes
import signal
import sys

# Two kernels in the assembly that the driver compiles: one that only counts, one that writes to an address of nobody.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry spin(.param .u64 out, .param .u64 rounds)
{
    .reg .pred %p; .reg .u64 %rd<4>; .reg .u32 %r<2>;
    ld.param.u64 %rd0, [out];
    ld.param.u64 %rd1, [rounds];
    mov.u64 %rd2, 0;
    mov.u32 %r0, 1;
again:
    mad.lo.u32 %r0, %r0, 1664525, 1013904223;
    add.u64 %rd2, %rd2, 1;
    setp.lt.u64 %p, %rd2, %rd1;
    @%p bra again;
    cvta.to.global.u64 %rd3, %rd0;
    st.global.u32 [%rd3], %r0;
    ret;
}
.visible .entry stray(.param .u64 to)
{
    .reg .u64 %rd<2>; .reg .u32 %r0;
    ld.param.u64 %rd0, [to];
    cvta.to.global.u64 %rd1, %rd0;
    mov.u32 %r0, 7;
    st.global.u32 [%rd1], %r0;
    ret;
}
"""
NOWHERE = 0x0000_7FFF_FFFF_F000
ROUNDS = 20_000_000
BLOCKS, THREADS = 256, 128


class Refused(Exception):
    """The driver said no."""


def say(line):
    print(line, flush=True)


def main():
    amount, mode = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        code = getattr(cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            cuda.cuGetErrorName(code, ctypes.byref(text))
            raise Refused(f"{name}: {code} {(text.value or b'').decode()}")

    def launch(kernel, grid, *values):
        held = [ctypes.c_uint64(value) for value in values]
        arguments = (ctypes.c_void_p * len(held))(*(ctypes.cast(ctypes.pointer(one), ctypes.c_void_p) for one in held))
        call("cuLaunchKernel", kernel, grid, 1, 1, THREADS if grid > 1 else 1, 1, 1, 0, None, arguments, None)
        call("cuCtxSynchronize")

    try:
        device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        memory, spin, stray = ctypes.c_uint64(), ctypes.c_void_p(), ctypes.c_void_p()
        call("cuInit", 0)
        call("cuDeviceGet", ctypes.byref(device), 0)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        call("cuCtxSetCurrent", context)
        call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(amount))
        call("cuMemsetD8_v2", memory, ctypes.c_ubyte(1), ctypes.c_size_t(amount))
        call("cuCtxSynchronize")
        call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX))
        call("cuModuleGetFunction", ctypes.byref(spin), module, b"spin")
        call("cuModuleGetFunction", ctypes.byref(stray), module, b"stray")
        say("ready")
        if mode == "fault":
            sys.stdin.readline()
            launch(stray, 1, NOWHERE)
        while mode == "compute":
            launch(spin, BLOCKS, memory.value, ROUNDS)
        signal.pause()
    except Refused as why:
        say(f"driver: {why}")
        sys.exit(3)


main()
