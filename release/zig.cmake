# A toolchain file: zig's clang, for the glibc of manylinux_2_28, on any machine. release/wheels.py sets the variables:
# ZIG, the compiler's path, and ARCHITECTURE, x86_64 or aarch64. Its libc++ is linked into the module.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${ARCHITECTURE})
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ARCHITECTURE)
set(CMAKE_CXX_COMPILER ${ZIG} c++)
set(CMAKE_CXX_COMPILER_TARGET ${ARCHITECTURE}-linux-gnu.2.28)
# No symbols: nobody profiles a wheel's binary, and they are most of its size.
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
# zig reads the name of a processor, not of an architecture, from -march.
set(ARMV8_2 -mcpu=generic)
