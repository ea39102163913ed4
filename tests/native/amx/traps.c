// A processor with AMX for programs that are compiled for one, where there is none: preloaded (LD_PRELOAD), this library
// catches the signal that an instruction of AMX raises, and does what the instruction would do (immintrin.h). So the
// instructions themselves are run as the compiler made them, those of libraries too. Linux on x86-64.

#define _GNU_SOURCE
#include "immintrin.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>


// What a program asks the system for before its first instruction, and the system of this machine refuses.
long syscall(long number, ...) {
    enum { REQUEST_PERMISSION = 0x1023 };
    static long (*next)(long, ...);
    if (next == NULL) {
        *(void **) &next = dlsym(RTLD_NEXT, "syscall");
    }
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; ++i) {
        a[i] = va_arg(list, long);
    }
    va_end(list);
    return number == SYS_arch_prctl && a[0] == REQUEST_PERMISSION ? 0 : next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

// general registers by their numbers in an instruction
static long long * reg(mcontext_t * m, int number) {
    static const int places[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
    return &m->gregs[places[number]];
}

typedef struct { // VEX prefix of three bytes, opcode, ModRM and what it refers to
    int prefix;  // 0, 1, 2, 3: none, 66, F3, F2
    int opcode;
    int mod, reg, rm;
    int second;  // the register that VEX names
    char * base; // of an operand in memory
    long   stride;
    int length;
} instruction;

static int parse(const uint8_t * code, mcontext_t * m, instruction * in) {
    // map 0F38, 128 bits, W0
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84) != 0) {
        return 0;
    }
    const int index_bit = code[1] & 0x40 ? 0 : 8, base_bit = code[1] & 0x20 ? 0 : 8;
    in->prefix = code[2] & 3;
    in->second = ~(code[2] >> 3) & 15;
    in->opcode = code[3];
    in->mod    = code[4] >> 6;
    in->reg    = code[4] >> 3 & 7;
    in->rm     = code[4] & 7;
    in->length = 5;
    in->stride = 0;
    if (in->mod == 3) {
        return 1;
    }
    int base = in->rm;
    if (in->rm == 4) {
        const int sib = code[in->length++], index = (sib >> 3 & 7) | index_bit;
        base = sib & 7;
        in->stride = index == 4 ? 0 : (long) *reg(m, index) << (sib >> 6);
    }
    int32_t offset = 0;
    int     n_offset = in->mod == 1 ? 1 : in->mod == 2 ? 4 : 0;
    long long from;
    if (base == 5 && in->mod == 0) { // no base, or of rm the address of the next instruction
        n_offset = 4;
        from     = in->rm == 4 ? 0 : (long long) (code + in->length + n_offset);
    } else {
        from = *reg(m, base | base_bit);
    }
    if (n_offset == 1) {
        offset = (int8_t) code[in->length];
    } else if (n_offset == 4) {
        memcpy(&offset, code + in->length, sizeof(offset));
    }
    in->length += n_offset;
    in->base = (char *) (uintptr_t) (from + offset);
    return 1;
}

static int execute(const instruction * in) {
    enum { NONE, P66, PF3, PF2 };
    const int memory = in->mod != 3;
    if (in->opcode == 0x49 && memory && in->reg == 0 && in->prefix == NONE) {
        amx_loadconfig(in->base);
    } else if (in->opcode == 0x49 && memory && in->reg == 0 && in->prefix == P66) {
        amx_storeconfig(in->base);
    } else if (in->opcode == 0x49 && !memory && in->reg == 0 && in->prefix == NONE) {
        amx_release();
    } else if (in->opcode == 0x49 && !memory && in->rm == 0 && in->prefix == PF2) {
        amx_zero(in->reg);
    } else if (in->opcode == 0x4B && memory && in->rm == 4 && (in->prefix == PF2 || in->prefix == P66)) {
        amx_loadd(in->reg, in->base, in->stride);
    } else if (in->opcode == 0x4B && memory && in->rm == 4 && in->prefix == PF3) {
        amx_stored(in->reg, in->base, in->stride);
    } else if (in->opcode == 0x5E && !memory) {
        amx_dpb(in->reg, in->rm, in->second, in->prefix == PF2 || in->prefix == PF3, in->prefix == PF2 || in->prefix == P66);
    } else {
        return 0;
    }
    return 1;
}

static void on_illegal(int number, siginfo_t * info, void * context) {
    (void) info;
    mcontext_t * m = &((ucontext_t *) context)->uc_mcontext;
    instruction in = { 0 };
    if (!parse((const uint8_t *) m->gregs[REG_RIP], m, &in) || !execute(&in)) {
        signal(number, SIG_DFL); // it is raised once more, and ends the program
        return;
    }
    m->gregs[REG_RIP] += in.length;
}

__attribute__((constructor)) static void catch(void) {
    struct sigaction action = { .sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_NODEFER };
    sigaction(SIGILL, &action, NULL);
}
