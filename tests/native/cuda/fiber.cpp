#include "fiber.h"

#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".globl fastlrp_switch\n"
    ".type fastlrp_switch, @function\n"
    "fastlrp_switch:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size fastlrp_switch, .-fastlrp_switch\n"
    ".section .note.GNU-stack,\"\",@progbits\n"
    ".text\n");
#endif
