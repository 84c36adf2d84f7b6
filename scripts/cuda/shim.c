// A stand-in for one of CUDA's libraries, to link against: a program with it starts where the library is absent, and every
// call then gives the error code FAIL. Where the library is there, the first call of a function finds it, and every call
// goes straight to it. x86-64 Linux only.
//
// Compile with -DFAIL=code -DSONAMES='"libfirst.so.2","libelse.so.1"' -Wa,-I,DIR, DIR holding the list `symbols.s`: a line
// `shim NAME` for each function of the library.
#include <dlfcn.h>
#include <string.h>

static const char absent[] = "this library of CUDA is not installed";
static long fail(void) { return FAIL; }
static const char *fail_text(void) { return absent; }
static long driver_text(int code, const char **text) { return (void)code, *text = absent, 0; }

// The function of this name. Two threads may look for the same one at a time: they find the same.
__attribute__((used)) static void *find(const char *name) __asm__("find");
static void *find(const char *name) {
  static const char *const sonames[] = {SONAMES};
  void *function = NULL;
  for (unsigned i = 0; i < sizeof sonames / sizeof *sonames && !function; i++) {
    void *library = dlopen(sonames[i], RTLD_NOW | RTLD_GLOBAL);
    if (library) function = dlsym(library, name);
  }
  if (function) return function;
  // What turns a code into text still does: the driver's functions through a pointer, the others themselves.
  if (!strncmp(name, "cuGetError", 10)) return (void *)driver_text;
  int text = strstr(name, "GetStatusString") || strstr(name, "GetStatusName") || !strcmp(name, "nvrtcGetErrorString");
  return text ? (void *)fail_text : (void *)fail;
}

// A function jumps through its slot. At first that leads to `resolve`, with the place of the slot in r10 and the name in r11,
// two registers that no argument is in; it keeps all that arguments may be in (those on the stack stay where they are),
// fills the slot and goes on to the function. No function of these libraries is variadic, so rax holds nothing. On entry
// rsp is 8 off a multiple of 16: seven pushes make it one, as a call needs.
__asm__(
    ".text\n"
    "resolve:\n"
    "  push %rdi\n  push %rsi\n  push %rdx\n  push %rcx\n  push %r8\n  push %r9\n  push %r10\n"
    "  sub $128, %rsp\n"
    "  movups %xmm0, (%rsp)\n    movups %xmm1, 16(%rsp)\n  movups %xmm2, 32(%rsp)\n  movups %xmm3, 48(%rsp)\n"
    "  movups %xmm4, 64(%rsp)\n  movups %xmm5, 80(%rsp)\n  movups %xmm6, 96(%rsp)\n  movups %xmm7, 112(%rsp)\n"
    "  mov %r11, %rdi\n"
    "  call find\n"
    "  mov %rax, %r11\n"
    "  movups (%rsp), %xmm0\n    movups 16(%rsp), %xmm1\n  movups 32(%rsp), %xmm2\n  movups 48(%rsp), %xmm3\n"
    "  movups 64(%rsp), %xmm4\n  movups 80(%rsp), %xmm5\n  movups 96(%rsp), %xmm6\n  movups 112(%rsp), %xmm7\n"
    "  add $128, %rsp\n"
    "  pop %r10\n  pop %r9\n  pop %r8\n  pop %rcx\n  pop %rdx\n  pop %rsi\n  pop %rdi\n"
    "  mov %r11, (%r10)\n"
    "  jmp *%r11\n"
    ".macro shim name\n"
    "  .data\n"
    "  .balign 8\n"
    "slot_\\name: .quad first_\\name\n"
    "  .section .rodata\n"
    "name_\\name: .asciz \"\\name\"\n"
    "  .text\n"
    "  .globl \\name\n"
    "  .type \\name, @function\n"
    "\\name:\n"
    "  jmp *slot_\\name(%rip)\n"
    "first_\\name:\n"
    "  lea slot_\\name(%rip), %r10\n"
    "  lea name_\\name(%rip), %r11\n"
    "  jmp resolve\n"
    ".endm\n"
    ".include \"symbols.s\"\n"
    ".text\n");
