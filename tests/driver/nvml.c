/* A stand-in for NVIDIA's libnvidia-ml.so.1: NVML's ABI, its GPUs out of a text file.
 *
 * Signatures, structs and version suffixes are those of NVIDIA's nvml.h as nvidia-ml-py calls them.
 * The file named by AITBCD_TEST_NVML says what there is; a test replaces it (rename) while a
 * program has the library open, and the next call sees the new one. As with the real library, GPUs
 * are enumerated by nvmlInit: one that is gone from the file is lost until the next one, and one
 * that is new in it is not seen before. MIG devices come and go at any time.
 *
 * The file: key=value lines; before the first section they are about the system.
 *     driver=570.86.15   nvml=12.570.86.15   cuda=12080
 *     fault.FUNCTION=CODE    that function returns that nvmlReturn_t; so does init=CODE
 *     hang.FUNCTION=1        it does not return while the file says so
 * [gpu] begins a GPU, in the order of their indices:
 *     uuid= name= bus= cc=9.0 memory= used= reserved= serial= minor= brand=
 *     utilization= memory_utilization= power= (mW) power_limit= energy= (mJ) temperature= sm_clock=
 *     memory_clock=      a number, or a curve: "0 50 100 every 0.5" takes the next each half second
 *     ecc= remap=CORRECTABLE UNCORRECTABLE PENDING FAILED   cpus= (mask, hexadecimal)  node=
 *     nvlink=UUID        has an NVLink to that GPU     near=UUID LEVEL   their common ancestor
 *     process=C|G|M PID MEMORY [UTILIZATION]           compute, graphics or MPS; memory - is none
 *     xid=SERIAL CODE    an event for who registered before this SERIAL was in the file
 *     mig=1              MIG mode is on
 *     fault=CODE, fault.FUNCTION=CODE, hang.FUNCTION=1: as above, for this GPU
 * [mig] begins a MIG device of the GPU before it: uuid= name= memory= used= gi= ci= process=
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25,
};
enum { DEVICES_MAX = 160, PROCESSES_MAX = 64, RULES_MAX = 64, NEAR_MAX = 64, XIDS_MAX = 32 };
enum { CURVE_MAX = 32, TEXT = 96, NVLINK_LEVEL = -1, ALL_INSTANCES = 0xFFFFFFFF };
static const unsigned long long EVENT_XID = 8, NO_MEMORY = -1ULL;

struct curve { double values[CURVE_MAX], every; int count; };
struct rule { char function[64]; int code; };
struct rules { struct rule fault[RULES_MAX], hang[RULES_MAX]; int faults, hangs, all; };
struct process { char kind; unsigned pid, utilization; unsigned long long memory; };
struct near { char uuid[TEXT]; int level; };
struct xid { long serial; unsigned long long code; };

struct device {
    int is_mig, parent, is_mig_on, node, major, minor_cc;
    char uuid[TEXT], name[TEXT], bus[32], serial[32];
    unsigned gi, ci, minor, brand, remap[4];
    unsigned long long memory, reserved, energy, ecc, cpus;
    struct curve used, utilization, memory_utilization, power, temperature, sm_clock, memory_clock;
    double power_limit;
    struct process processes[PROCESSES_MAX];
    struct near nears[NEAR_MAX];
    struct xid xids[XIDS_MAX];
    int process_count, near_count, xid_count;
    struct rules rules;
};

/* What nvmlDevice_t points to: it outlives changes of the file and is told by its UUID. */
struct handle { int is_mig; char uuid[TEXT]; };

struct event_set { long seen; };
struct event_data {
    struct handle *device;
    unsigned long long type, data;
    unsigned gi, ci;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct device devices[DEVICES_MAX];
static int device_count;
static struct rules system_rules;
static char driver[TEXT], nvml[TEXT];
static int cuda;
static struct stat read_state;
static struct handle handles[DEVICES_MAX];
static int handle_count, enumerated, initialized;

/* --- the file --------------------------------------------------------------------------- */

static const char *script(void) {
    const char *path = getenv("AITBCD_TEST_NVML");
    return path ? path : "/nonexistent";
}

static struct curve curve(const char *text) {
    struct curve made = {.every = 1};
    char *end;
    for (;;) {
        double value = strtod(text, &end);
        if (end == text || made.count == CURVE_MAX) break;
        made.values[made.count++] = value;
        text = end;
    }
    sscanf(text, " every %lf", &made.every);
    return made;
}

static double now(const struct curve *of) {
    struct timespec time;
    if (of->count == 0) return 0;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return of->values[(long)((time.tv_sec + time.tv_nsec / 1e9) / of->every) % of->count];
}

static int add_rule(struct rules *rules, const char *key, const char *value) {
    if (!strcmp(key, "fault")) {
        rules->all = atoi(value);
    } else if (!strncmp(key, "fault.", 6) && rules->faults < RULES_MAX) {
        struct rule *made = &rules->fault[rules->faults++];
        snprintf(made->function, sizeof made->function, "%s", key + 6);
        made->code = atoi(value);
    } else if (!strncmp(key, "hang.", 5) && rules->hangs < RULES_MAX) {
        snprintf(rules->hang[rules->hangs++].function, sizeof rules->hang[0].function, "%s", key + 5);
    } else {
        return 0;
    }
    return 1;
}

static void add_process(struct device *to, const char *value) {
    char memory[32] = "0";
    if (to->process_count == PROCESSES_MAX) return;
    struct process *made = &to->processes[to->process_count++];
    sscanf(value, "%c %u %31s %u", &made->kind, &made->pid, memory, &made->utilization);
    made->memory = *memory == '-' ? NO_MEMORY : strtoull(memory, NULL, 10);
}

static void add_near(struct device *to, const char *value, int is_nvlink) {
    if (to->near_count == NEAR_MAX) return;
    struct near *made = &to->nears[to->near_count++];
    made->level = NVLINK_LEVEL;
    sscanf(value, is_nvlink ? "%95s" : "%95s %d", made->uuid, &made->level);
}

static void add_xid(struct device *to, const char *value) {
    if (to->xid_count == XIDS_MAX) return;
    struct xid *made = &to->xids[to->xid_count++];
    sscanf(value, "%ld %llu", &made->serial, &made->code);
}

static void system_key(const char *key, const char *value) {
    if (add_rule(&system_rules, key, value)) return;
    if (!strcmp(key, "driver")) snprintf(driver, sizeof driver, "%s", value);
    if (!strcmp(key, "nvml")) snprintf(nvml, sizeof nvml, "%s", value);
    if (!strcmp(key, "cuda")) cuda = atoi(value);
    if (!strcmp(key, "init")) add_rule(&system_rules, "fault.nvmlInitWithFlags", value);
}

static void device_key(struct device *to, const char *key, const char *value) {
    unsigned long long number = strtoull(value, NULL, 10);
#define IS(name) (!strcmp(key, name))
    if (add_rule(&to->rules, key, value)) return;
    if (IS("uuid")) snprintf(to->uuid, sizeof to->uuid, "%s", value);
    if (IS("name")) snprintf(to->name, sizeof to->name, "%s", value);
    if (IS("bus")) snprintf(to->bus, sizeof to->bus, "%s", value);
    if (IS("serial")) snprintf(to->serial, sizeof to->serial, "%s", value);
    if (IS("cc")) sscanf(value, "%d.%d", &to->major, &to->minor_cc);
    if (IS("memory")) to->memory = number;
    if (IS("reserved")) to->reserved = number;
    if (IS("used")) to->used = curve(value);
    if (IS("minor")) to->minor = number;
    if (IS("brand")) to->brand = number;
    if (IS("utilization")) to->utilization = curve(value);
    if (IS("memory_utilization")) to->memory_utilization = curve(value);
    if (IS("power")) to->power = curve(value);
    if (IS("power_limit")) to->power_limit = number;
    if (IS("energy")) to->energy = number;
    if (IS("temperature")) to->temperature = curve(value);
    if (IS("sm_clock")) to->sm_clock = curve(value);
    if (IS("memory_clock")) to->memory_clock = curve(value);
    if (IS("ecc")) to->ecc = number;
    if (IS("remap")) sscanf(value, "%u %u %u %u", &to->remap[0], &to->remap[1], &to->remap[2], &to->remap[3]);
    if (IS("cpus")) to->cpus = strtoull(value, NULL, 16);
    if (IS("node")) to->node = number;
    if (IS("nvlink")) add_near(to, value, 1);
    if (IS("near")) add_near(to, value, 0);
    if (IS("process")) add_process(to, value);
    if (IS("xid")) add_xid(to, value);
    if (IS("mig")) to->is_mig_on = number;
    if (IS("gi")) to->gi = number;
    if (IS("ci")) to->ci = number;
#undef IS
}

static struct device *begin_device(int is_mig) {
    static struct device spare;
    if (device_count == DEVICES_MAX) return &spare;
    struct device *made = &devices[device_count++];
    memset(made, 0, sizeof *made);
    made->is_mig = is_mig;
    made->node = -1;
    made->parent = -1;
    for (int i = device_count - 2; is_mig && i >= 0 && made->parent < 0; i--)
        if (!devices[i].is_mig) made->parent = i;
    return made;
}

static void reload(void) {
    struct stat state;
    char line[512];
    if (stat(script(), &state) != 0) return;
    if (state.st_ino == read_state.st_ino && state.st_size == read_state.st_size
        && state.st_mtim.tv_sec == read_state.st_mtim.tv_sec
        && state.st_mtim.tv_nsec == read_state.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(script(), "re");
    if (!file) return;
    read_state = state;
    device_count = 0;
    memset(&system_rules, 0, sizeof system_rules);
    strcpy(driver, "570.86.15");
    strcpy(nvml, "12.570.86.15");
    cuda = 12080;
    struct device *to = NULL;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, '=');
        if (!strcmp(line, "[gpu]") || !strcmp(line, "[mig]")) {
            to = begin_device(line[1] == 'm');
        } else if (value) {
            *value++ = 0;
            to ? device_key(to, line, value) : system_key(line, value);
        }
    }
    fclose(file);
}

/* Blocks until the file may have changed since `before`; 0 when the time is over. */
static int wait_for_change(struct stat before, int timeout_ms) {
    char folder[PATH_MAX], *slash;
    struct stat state;
    snprintf(folder, sizeof folder, "%s", script());
    if ((slash = strrchr(folder, '/'))) *slash = 0;
    int watch = inotify_init1(IN_CLOEXEC);
    inotify_add_watch(watch, folder, IN_MOVED_TO | IN_CLOSE_WRITE);
    struct pollfd ready = {.fd = watch, .events = POLLIN};
    int changed = stat(script(), &state) == 0 && (state.st_ino != before.st_ino
        || state.st_mtim.tv_nsec != before.st_mtim.tv_nsec);
    if (!changed) changed = poll(&ready, 1, timeout_ms) > 0;
    close(watch);
    return changed;
}

/* --- what every function begins with ----------------------------------------------------- */

static int is_hanging(const struct rules *rules, const char *function) {
    for (int i = 0; i < rules->hangs; i++)
        if (!strcmp(rules->hang[i].function, function)) return 1;
    return 0;
}

static int fault_of(const struct rules *rules, const char *function) {
    for (int i = 0; i < rules->faults; i++)
        if (!strcmp(rules->fault[i].function, function)) return rules->fault[i].code;
    return rules->all;
}

static struct device *find(const char *uuid) {
    for (int i = 0; i < device_count; i++)
        if (!strcmp(devices[i].uuid, uuid)) return &devices[i];
    return NULL;
}

static struct handle *handle_of(const struct device *of) {
    for (int i = 0; i < handle_count; i++)
        if (!strcmp(handles[i].uuid, of->uuid)) return &handles[i];
    struct handle *made = &handles[handle_count++ % DEVICES_MAX];
    made->is_mig = of->is_mig;
    snprintf(made->uuid, sizeof made->uuid, "%s", of->uuid);
    return made;
}

/* Takes the lock; returns what the function is to return, SUCCESS when it is to go on. */
static int enter(const char *function, struct handle *handle, struct device **found) {
    pthread_mutex_lock(&lock);
    for (;;) {
        reload();
        struct device *device = handle ? find(handle->uuid) : NULL;
        if (!is_hanging(&system_rules, function)
            && !(device && is_hanging(&device->rules, function))) {
            int fault = fault_of(&system_rules, function);
            if (fault) return fault;
            if (!initialized) return UNINITIALIZED;
            if (!handle) return SUCCESS;
            if (!device) return handle->is_mig ? INVALID_ARGUMENT : GPU_IS_LOST;
            *found = device;
            return fault_of(&device->rules, function);
        }
        struct stat before = read_state;
        pthread_mutex_unlock(&lock);
        wait_for_change(before, -1);
        pthread_mutex_lock(&lock);
    }
}

#define LEAVE(code) do { int _code = (code); pthread_mutex_unlock(&lock); return _code; } while (0)
#define SYSTEM() do { int _entered = enter(__func__, NULL, NULL); \
    if (_entered) LEAVE(_entered); } while (0)
#define DEVICE(handle) struct device *gpu = NULL; do { \
    if (!(handle)) return INVALID_ARGUMENT; \
    int _entered = enter(__func__, handle, &gpu); \
    if (_entered) LEAVE(_entered); } while (0)
#define WHOLE_GPU(handle) DEVICE(handle); if (gpu->is_mig) LEAVE(NOT_SUPPORTED)

static int put_text(char *to, unsigned length, const char *text) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

/* --- the system -------------------------------------------------------------------------- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int entered = enter(__func__, NULL, NULL);
    if (entered && entered != UNINITIALIZED) LEAVE(entered);
    if (initialized++ == 0) {
        /* MIG handles do not count: the first `enumerated` ones are the GPUs by index. */
        handle_count = 0;
        for (int i = 0; i < device_count; i++)
            if (!devices[i].is_mig) handle_of(&devices[i]);
        enumerated = handle_count;
    }
    LEAVE(SUCCESS);
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void) {
    SYSTEM();
    initialized--;
    LEAVE(SUCCESS);
}

EXPORT const char *nvmlErrorString(int code) {
    static const char *texts[] = {
        [SUCCESS] = "Success", [UNINITIALIZED] = "Uninitialized",
        [INVALID_ARGUMENT] = "Invalid Argument", [NOT_SUPPORTED] = "Not Supported",
        [4] = "Insufficient Permissions", [NOT_FOUND] = "Not Found",
        [INSUFFICIENT_SIZE] = "Insufficient Size", [8] = "Insufficient External Power",
        [9] = "Driver Not Loaded", [TIMEOUT] = "Timeout", [11] = "Interrupt Request Issue",
        [12] = "NVML Shared Library Not Found", [13] = "Function Not Found",
        [14] = "Corrupted infoROM", [GPU_IS_LOST] = "GPU is lost",
        [16] = "GPU requires restart", [17] = "The operating system has blocked the request",
        [18] = "RM has detected an NVML/RM version mismatch.",
    };
    int known = code >= 0 && code < (int)(sizeof texts / sizeof *texts) && texts[code];
    return known ? texts[code] : "Unknown Error";
}

EXPORT int nvmlSystemGetDriverVersion(char *to, unsigned length) {
    SYSTEM();
    LEAVE(put_text(to, length, driver));
}

EXPORT int nvmlSystemGetNVMLVersion(char *to, unsigned length) {
    SYSTEM();
    LEAVE(put_text(to, length, nvml));
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version) {
    SYSTEM();
    *version = cuda;
    LEAVE(SUCCESS);
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    SYSTEM();
    *version = cuda;
    LEAVE(SUCCESS);
}

EXPORT int nvmlSystemGetProcessName(unsigned pid, char *to, unsigned length) {
    char path[64], name[256] = "";
    SYSTEM();
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (!file) LEAVE(NOT_FOUND);
    if (!fgets(name, sizeof name, file)) *name = 0;
    fclose(file);
    snprintf(to, length, "%s", name);
    LEAVE(SUCCESS);
}

/* --- which GPUs -------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    SYSTEM();
    *count = enumerated;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct handle **to) {
    SYSTEM();
    if (index >= (unsigned)enumerated) LEAVE(INVALID_ARGUMENT);
    struct device *gpu = find(handles[index].uuid);
    if (!gpu) LEAVE(GPU_IS_LOST);
    *to = &handles[index];
    LEAVE(fault_of(&gpu->rules, __func__));
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, struct handle **to) {
    SYSTEM();
    struct device *gpu = find(uuid);
    if (!gpu) LEAVE(NOT_FOUND);
    *to = handle_of(gpu);
    LEAVE(fault_of(&gpu->rules, __func__));
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, struct handle **to) {
    SYSTEM();
    for (int i = 0; i < enumerated; i++) {
        struct device *gpu = find(handles[i].uuid);
        if (gpu && !strcasecmp(gpu->bus, bus)) {
            *to = &handles[i];
            LEAVE(fault_of(&gpu->rules, __func__));
        }
    }
    LEAVE(NOT_FOUND);
}

EXPORT int nvmlDeviceGetIndex(struct handle *handle, unsigned *index) {
    WHOLE_GPU(handle);
    *index = handle - handles;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetMinorNumber(struct handle *handle, unsigned *minor) {
    WHOLE_GPU(handle);
    *minor = gpu->minor;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetUUID(struct handle *handle, char *to, unsigned length) {
    DEVICE(handle);
    LEAVE(put_text(to, length, gpu->uuid));
}

EXPORT int nvmlDeviceGetName(struct handle *handle, char *to, unsigned length) {
    DEVICE(handle);
    LEAVE(put_text(to, length, gpu->name));
}

EXPORT int nvmlDeviceGetSerial(struct handle *handle, char *to, unsigned length) {
    WHOLE_GPU(handle);
    LEAVE(*gpu->serial ? put_text(to, length, gpu->serial) : NOT_SUPPORTED);
}

EXPORT int nvmlDeviceGetBrand(struct handle *handle, unsigned *brand) {
    WHOLE_GPU(handle);
    *brand = gpu->brand;
    LEAVE(SUCCESS);
}

struct pci_info {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
};

EXPORT int nvmlDeviceGetPciInfo_v3(struct handle *handle, struct pci_info *to) {
    WHOLE_GPU(handle);
    memset(to, 0, sizeof *to);
    sscanf(gpu->bus, "%x:%x:%x", &to->domain, &to->bus, &to->device);
    snprintf(to->bus_id, sizeof to->bus_id, "%s", gpu->bus);
    snprintf(to->legacy, sizeof to->legacy, "%04X:%02X:%02X.0", to->domain & 0xFFFF, to->bus & 0xFF,
             to->device & 0xFF);
    to->id = 0x233010DE;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetCudaComputeCapability(struct handle *handle, int *major, int *minor) {
    DEVICE(handle);
    if (gpu->is_mig) gpu = &devices[gpu->parent];
    *major = gpu->major;
    *minor = gpu->minor_cc;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetCpuAffinity(struct handle *handle, unsigned words, unsigned long *to) {
    WHOLE_GPU(handle);
    if (!gpu->cpus) LEAVE(NOT_SUPPORTED);
    memset(to, 0, words * sizeof *to);
    to[0] = gpu->cpus;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetMemoryAffinity(struct handle *handle, unsigned words, unsigned long *to,
                                       unsigned scope) {
    (void)scope;
    WHOLE_GPU(handle);
    if (gpu->node < 0) LEAVE(NOT_SUPPORTED);
    memset(to, 0, words * sizeof *to);
    to[0] = 1UL << gpu->node;
    LEAVE(SUCCESS);
}

/* Of GPUs that are NUMA nodes themselves (Grace) alone; not of the node that one is near to. */
EXPORT int nvmlDeviceGetNumaNodeId(struct handle *handle, int *node) {
    (void)node;
    WHOLE_GPU(handle);
    LEAVE(NOT_SUPPORTED);
}

/* --- who is near whom -------------------------------------------------------------------- */

static const struct near *near_to(const struct device *one, const struct device *other, int level) {
    for (int i = 0; i < one->near_count; i++) {
        const struct near *near = &one->nears[i];
        if (!strcmp(near->uuid, other->uuid) && (near->level == NVLINK_LEVEL) == (level < 0))
            return near;
    }
    return NULL;
}

EXPORT int nvmlDeviceGetTopologyCommonAncestor(struct handle *handle, struct handle *second,
                                               int *level) {
    enum { SYSTEM_LEVEL = 50 };
    WHOLE_GPU(handle);
    struct device *other = second ? find(second->uuid) : NULL;
    if (!other) LEAVE(INVALID_ARGUMENT);
    const struct near *near = near_to(gpu, other, 0);
    if (!near) near = near_to(other, gpu, 0);
    *level = near ? near->level : SYSTEM_LEVEL;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetP2PStatus(struct handle *handle, struct handle *second, unsigned what,
                                  int *status) {
    enum { NVLINK = 2, OK = 0, GPU_NOT_SUPPORTED = 2 };
    WHOLE_GPU(handle);
    struct device *other = second ? find(second->uuid) : NULL;
    if (!other) LEAVE(INVALID_ARGUMENT);
    int linked = near_to(gpu, other, NVLINK_LEVEL) || near_to(other, gpu, NVLINK_LEVEL);
    *status = what == NVLINK && linked ? OK : GPU_NOT_SUPPORTED;
    LEAVE(SUCCESS);
}

static const struct device *linked_by(const struct device *gpu, unsigned link) {
    for (int i = 0; i < gpu->near_count; i++)
        if (gpu->nears[i].level == NVLINK_LEVEL && link-- == 0) return find(gpu->nears[i].uuid);
    return NULL;
}

EXPORT int nvmlDeviceGetNvLinkState(struct handle *handle, unsigned link, unsigned *active) {
    WHOLE_GPU(handle);
    if (!linked_by(gpu, 0)) LEAVE(NOT_SUPPORTED);
    *active = linked_by(gpu, link) != NULL;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct handle *handle, unsigned link,
                                               struct pci_info *to) {
    WHOLE_GPU(handle);
    const struct device *other = linked_by(gpu, link);
    if (!other) LEAVE(INVALID_ARGUMENT);
    memset(to, 0, sizeof *to);
    snprintf(to->bus_id, sizeof to->bus_id, "%s", other->bus);
    LEAVE(SUCCESS);
}

/* --- what a GPU does ---------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetMemoryInfo(struct handle *handle, unsigned long long *to) {
    DEVICE(handle);
    unsigned long long used = now(&gpu->used) + gpu->reserved;
    to[0] = gpu->memory;
    to[1] = gpu->memory - used;
    to[2] = used;
    LEAVE(SUCCESS);
}

struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

EXPORT int nvmlDeviceGetMemoryInfo_v2(struct handle *handle, struct memory_v2 *to) {
    DEVICE(handle);
    if (to->version != (sizeof *to | 2 << 24)) LEAVE(VERSION_MISMATCH);
    to->total = gpu->memory;
    to->reserved = gpu->reserved;
    to->used = now(&gpu->used);
    to->free = to->total - to->reserved - to->used;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetUtilizationRates(struct handle *handle, unsigned *to) {
    WHOLE_GPU(handle);
    if (gpu->is_mig_on) LEAVE(NOT_SUPPORTED);
    to[0] = now(&gpu->utilization);
    to[1] = now(&gpu->memory_utilization);
    LEAVE(SUCCESS);
}

#define READING(function, type, expression) \
    EXPORT int function(struct handle *handle, type *to) { \
        WHOLE_GPU(handle); \
        *to = (expression); \
        LEAVE(SUCCESS); \
    }
READING(nvmlDeviceGetPowerUsage, unsigned, now(&gpu->power))
READING(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->power_limit)
READING(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, gpu->power_limit)
READING(nvmlDeviceGetEnforcedPowerLimit, unsigned, gpu->power_limit)
READING(nvmlDeviceGetPersistenceMode, unsigned, 1)
READING(nvmlDeviceGetDisplayActive, unsigned, 0)
READING(nvmlDeviceGetDisplayMode, unsigned, 0)
READING(nvmlDeviceGetComputeMode, unsigned, 0)
READING(nvmlDeviceGetPerformanceState, unsigned, 0)

struct bar1_memory { unsigned long long total, free, used; };

EXPORT int nvmlDeviceGetBAR1MemoryInfo(struct handle *handle, struct bar1_memory *to) {
    DEVICE(handle);
    *to = (struct bar1_memory){.total = gpu->memory, .free = gpu->memory};
    LEAVE(SUCCESS);
}

/* What no GPU here has: video, fans, and the drivers of Windows. */
#define LACKING(function) \
    EXPORT int function(struct handle *handle, unsigned *to, unsigned *more) { \
        (void)to, (void)more; \
        DEVICE(handle); \
        LEAVE(NOT_SUPPORTED); \
    }
LACKING(nvmlDeviceGetEncoderUtilization)
LACKING(nvmlDeviceGetDecoderUtilization)
LACKING(nvmlDeviceGetDriverModel)
EXPORT int nvmlDeviceGetFanSpeed(struct handle *handle, unsigned *speed) {
    (void)speed;
    DEVICE(handle);
    LEAVE(NOT_SUPPORTED);
}

/* Of Volta and newer ones. */
EXPORT int nvmlDeviceGetTotalEnergyConsumption(struct handle *handle, unsigned long long *to) {
    WHOLE_GPU(handle);
    if (gpu->major < 7) LEAVE(NOT_SUPPORTED);
    *to = gpu->energy;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetTemperature(struct handle *handle, unsigned sensor, unsigned *to) {
    (void)sensor;
    WHOLE_GPU(handle);
    *to = now(&gpu->temperature);
    LEAVE(SUCCESS);
}

struct temperature { unsigned version, sensor; int temperature; };

EXPORT int nvmlDeviceGetTemperatureV(struct handle *handle, struct temperature *to) {
    WHOLE_GPU(handle);
    if (to->version != (sizeof *to | 1 << 24)) LEAVE(VERSION_MISMATCH);
    to->temperature = now(&gpu->temperature);
    LEAVE(SUCCESS);
}

static int clock_of(const struct device *gpu, unsigned type, unsigned *to) {
    enum { MEMORY = 2 };
    *to = now(type == MEMORY ? &gpu->memory_clock : &gpu->sm_clock);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetClockInfo(struct handle *handle, unsigned type, unsigned *to) {
    WHOLE_GPU(handle);
    LEAVE(clock_of(gpu, type, to));
}

EXPORT int nvmlDeviceGetMaxClockInfo(struct handle *handle, unsigned type, unsigned *to) {
    WHOLE_GPU(handle);
    LEAVE(clock_of(gpu, type, to));
}

/* --- who uses it -------------------------------------------------------------------------- */

struct process_info { unsigned pid; unsigned long long memory; unsigned gi, ci; };

static void add_processes(const struct device *of, char kind, struct process_info *to, unsigned room,
                          unsigned *count) {
    for (int i = 0; i < of->process_count; i++) {
        const struct process *process = &of->processes[i];
        if (process->kind != kind) continue;
        if (*count < room)
            to[*count] = (struct process_info){
                process->pid, process->memory, of->is_mig ? of->gi : ALL_INSTANCES,
                of->is_mig ? of->ci : ALL_INSTANCES};
        ++*count;
    }
}

/* A GPU in MIG mode tells the processes of all its MIG devices. */
static int processes(const struct device *gpu, char kind, unsigned *count, struct process_info *to) {
    unsigned room = to ? *count : 0;
    *count = 0;
    add_processes(gpu, kind, to, room, count);
    for (int i = 0; !gpu->is_mig && i < device_count; i++)
        if (devices[i].is_mig && &devices[devices[i].parent] == gpu)
            add_processes(&devices[i], kind, to, room, count);
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESSES(name, kind) \
    EXPORT int name(struct handle *handle, unsigned *count, struct process_info *to) { \
        DEVICE(handle); \
        LEAVE(processes(gpu, kind, count, to)); \
    }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, 'C')
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, 'C')
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, 'G')
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, 'G')
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, 'M')
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, 'M')

struct utilization_sample { unsigned pid; unsigned long long at; unsigned sm, memory, enc, dec; };

EXPORT int nvmlDeviceGetProcessUtilization(struct handle *handle, struct utilization_sample *to,
                                           unsigned *count, unsigned long long since) {
    WHOLE_GPU(handle);
    (void)since;
    unsigned room = to ? *count : 0;
    *count = gpu->process_count;
    if (*count == 0) LEAVE(NOT_FOUND);
    if (*count > room) LEAVE(INSUFFICIENT_SIZE);
    for (int i = 0; i < gpu->process_count; i++)
        to[i] = (struct utilization_sample){
            gpu->processes[i].pid, time(NULL) * 1000000ULL, gpu->processes[i].utilization, 0, 0, 0};
    LEAVE(SUCCESS);
}

/* --- health ------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetEccMode(struct handle *handle, unsigned *current, unsigned *pending) {
    WHOLE_GPU(handle);
    *current = *pending = 1;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetTotalEccErrors(struct handle *handle, unsigned type, unsigned counter,
                                       unsigned long long *to) {
    enum { UNCORRECTED = 1, VOLATILE = 0 };
    WHOLE_GPU(handle);
    *to = type == UNCORRECTED && counter == VOLATILE ? gpu->ecc : 0;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetMemoryErrorCounter(struct handle *handle, unsigned type, unsigned counter,
                                           unsigned location, unsigned long long *to) {
    (void)location;
    WHOLE_GPU(handle);
    *to = type == 1 && counter == 0 ? gpu->ecc : 0;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetRemappedRows(struct handle *handle, unsigned *corrected,
                                     unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    WHOLE_GPU(handle);
    if (gpu->major < 8) LEAVE(NOT_SUPPORTED);
    *corrected = gpu->remap[0];
    *uncorrected = gpu->remap[1];
    *pending = gpu->remap[2];
    *failed = gpu->remap[3];
    LEAVE(SUCCESS);
}

static long newest_serial(void) {
    long newest = 0;
    for (int i = 0; i < device_count; i++)
        for (int k = 0; k < devices[i].xid_count; k++)
            if (devices[i].xids[k].serial > newest) newest = devices[i].xids[k].serial;
    return newest;
}

EXPORT int nvmlEventSetCreate(struct event_set **to) {
    SYSTEM();
    *to = malloc(sizeof **to);
    (*to)->seen = newest_serial();
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetSupportedEventTypes(struct handle *handle, unsigned long long *types) {
    WHOLE_GPU(handle);
    *types = EVENT_XID;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceRegisterEvents(struct handle *handle, unsigned long long types,
                                    struct event_set *set) {
    WHOLE_GPU(handle);
    LEAVE(set && types == EVENT_XID ? SUCCESS : INVALID_ARGUMENT);
}

static int next_event(struct event_set *set, struct event_data *to) {
    const struct device *of = NULL;
    const struct xid *next = NULL;
    for (int i = 0; i < device_count; i++)
        for (int k = 0; k < devices[i].xid_count; k++) {
            const struct xid *xid = &devices[i].xids[k];
            if (xid->serial > set->seen && (!next || xid->serial < next->serial)) {
                next = xid;
                of = &devices[i];
            }
        }
    if (!next) return 0;
    set->seen = next->serial;
    *to = (struct event_data){handle_of(of), EVENT_XID, next->code, ALL_INSTANCES, ALL_INSTANCES};
    return 1;
}

static long milliseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

EXPORT int nvmlEventSetWait_v2(struct event_set *set, struct event_data *to, unsigned timeout_ms) {
    long until = milliseconds() + timeout_ms;
    for (;;) {
        SYSTEM();
        if (next_event(set, to)) LEAVE(SUCCESS);
        struct stat before = read_state;
        pthread_mutex_unlock(&lock);
        long left = until - milliseconds();
        if (left <= 0) return TIMEOUT;
        wait_for_change(before, left > INT_MAX ? INT_MAX : (int)left);
    }
}

EXPORT int nvmlEventSetFree(struct event_set *set) {
    SYSTEM();
    free(set);
    LEAVE(SUCCESS);
}

/* --- MIG ---------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetMigMode(struct handle *handle, unsigned *current, unsigned *pending) {
    WHOLE_GPU(handle);
    if (gpu->major < 8) LEAVE(NOT_SUPPORTED);
    *current = *pending = gpu->is_mig_on;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(struct handle *handle, unsigned *count) {
    WHOLE_GPU(handle);
    *count = gpu->major < 8 ? 0 : 7;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(struct handle *handle, unsigned index,
                                               struct handle **to) {
    WHOLE_GPU(handle);
    for (int i = 0; i < device_count; i++)
        if (devices[i].is_mig && &devices[devices[i].parent] == gpu && index-- == 0) {
            *to = handle_of(&devices[i]);
            LEAVE(fault_of(&devices[i].rules, __func__));
        }
    LEAVE(NOT_FOUND);
}

EXPORT int nvmlDeviceIsMigDeviceHandle(struct handle *handle, unsigned *is_mig) {
    DEVICE(handle);
    *is_mig = gpu->is_mig;
    LEAVE(SUCCESS);
}

EXPORT int nvmlDeviceGetGpuInstanceId(struct handle *handle, unsigned *id) {
    DEVICE(handle);
    *id = gpu->gi;
    LEAVE(gpu->is_mig ? SUCCESS : INVALID_ARGUMENT);
}

EXPORT int nvmlDeviceGetComputeInstanceId(struct handle *handle, unsigned *id) {
    DEVICE(handle);
    *id = gpu->ci;
    LEAVE(gpu->is_mig ? SUCCESS : INVALID_ARGUMENT);
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct handle *handle, struct handle **to) {
    DEVICE(handle);
    if (!gpu->is_mig) LEAVE(INVALID_ARGUMENT);
    *to = handle_of(&devices[gpu->parent]);
    LEAVE(SUCCESS);
}
