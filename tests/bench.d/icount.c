/*
 * Guest-instruction and device-access counter: a TCG plugin for qemu-system.
 *
 * The plugin interface is a plain C ABI; the few calls used are declared here, so no QEMU header is needed.
 *   cc -O2 -shared -fPIC -DAPI=1 -o icount.so icount.c      QEMU 7 and 8
 *   cc -O2 -shared -fPIC -DAPI=4 -o icount.so icount.c      QEMU 9.2 and later
 *
 * -plugin icount.so[,skip=FROM-TO …][,mmio=on]
 *   skip=FROM-TO  translation blocks that start in [FROM, TO) are counted apart: name the loops that wait
 *   mmio=on       count device accesses by page of 4 KiB; slow
 *
 * At exit one line goes to the plugin log: "ICOUNT insns=N skipped=N [mmio_PAGE=N …]". The cost of one request is the
 * difference of two runs with N and 2 N requests, divided by N.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef API
#define API 1
#endif
#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct block;
struct instruction;
struct physical;

EXPORT int qemu_plugin_version = API;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern uint64_t qemu_plugin_tb_vaddr(const struct block *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern void qemu_plugin_outs(const char *);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct block *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct instruction *, void (*)(unsigned, uint32_t, uint64_t, void *), int,
                                             int, void *);
extern struct physical *qemu_plugin_get_hwaddr(uint32_t, uint64_t);
extern bool qemu_plugin_hwaddr_is_io(const struct physical *);
extern uint64_t qemu_plugin_hwaddr_phys_addr(const struct physical *);

enum { RANGES = 16, PAGES = 64, CORES = 16 };

static struct { uint64_t from, to; } skip[RANGES];
static int skips;
static bool mmio;
/* One row a core, so that cores never write the same word. */
static struct { uint64_t counted, skipped, pad[6]; } cores[CORES];
static struct { uint64_t page, accesses; } pages[PAGES];

static void ran(unsigned core, void *data)
{
    cores[core % CORES].counted += (uintptr_t)data;
}

static void ran_skipped(unsigned core, void *data)
{
    cores[core % CORES].skipped += (uintptr_t)data;
}

static void accessed(unsigned core, uint32_t info, uint64_t address, void *data)
{
    struct physical *where = qemu_plugin_get_hwaddr(info, address);
    if (!where || !qemu_plugin_hwaddr_is_io(where))
        return;
    uint64_t page = qemu_plugin_hwaddr_phys_addr(where) & ~0xfffULL;
    for (int i = 0; i < PAGES; i++) {
        if (!pages[i].accesses)
            pages[i].page = page;
        if (pages[i].page == page) {
            __atomic_fetch_add(&pages[i].accesses, 1, __ATOMIC_RELAXED);
            return;
        }
    }
}

static void translated(plugin_id id, struct block *block)
{
    size_t n = qemu_plugin_tb_n_insns(block);
    uint64_t start = qemu_plugin_tb_vaddr(block);
    bool apart = false;
    for (int i = 0; i < skips; i++)
        apart |= start >= skip[i].from && start < skip[i].to;
    qemu_plugin_register_vcpu_tb_exec_cb(block, apart ? ran_skipped : ran, 0, (void *)(uintptr_t)n);
    if (mmio && !apart)
        for (size_t i = 0; i < n; i++)
            qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), accessed, 0, 3, NULL);
}

static void finished(plugin_id id, void *data)
{
    char line[4096];
    uint64_t counted = 0, skipped = 0;
    for (int i = 0; i < CORES; i++) {
        counted += cores[i].counted;
        skipped += cores[i].skipped;
    }
    int at = snprintf(line, sizeof line, "ICOUNT insns=%lu skipped=%lu", counted, skipped);
    for (int i = 0; i < PAGES && pages[i].accesses; i++)
        at += snprintf(line + at, sizeof line - at, " mmio_%lx=%lu", pages[i].page, pages[i].accesses);
    snprintf(line + at, sizeof line - at, "\n");
    qemu_plugin_outs(line);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "skip=", 5) && skips < RANGES) {
            char *end;
            skip[skips].from = strtoull(argv[i] + 5, &end, 0);
            skip[skips++].to = strtoull(end + 1, NULL, 0);
        } else if (!strncmp(argv[i], "mmio=", 5)) {
            mmio = !strcmp(argv[i] + 5, "on") || !strcmp(argv[i] + 5, "true");
        }
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
