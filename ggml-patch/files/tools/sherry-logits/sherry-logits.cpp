// Full-precision logits of a model for given token ids, for comparing runtimes.
//
// (llama-perplexity's --save-all-logits keeps 16 bits of a logit, too few for the differences looked for here.)
//
// Input, a file or stdin: raw int32 token ids, native byte order, no header. Every --ctx-size ids are a chunk of
// its own, evaluated in an empty context from position 0; the ids are used as they are, no BOS is added. Input that
// ends within a chunk is an error. A model with an encoder takes --encoder more ids before each chunk, for the encoder.
//
// Output, native byte order:
//   char[8]  "SHLOGITS"
//   int32    n_vocab, n_positions               n_positions = ctx-size - from
//   float32  [n_positions][n_vocab]             of each chunk: logits at positions from .. ctx-size - 1
//
// A chunk's logits are written before the next chunk is read: over pipes, each chunk is a request and its answer.
// At most N_BATCH positions are in memory. No GPU is used without -ngl or --rpc; a BLAS backend is, if one was built.
//
// With --check no logits are computed, and no weight is read: whether llama.cpp loads the file is the exit status. Its
// metadata and vocabulary are read, and every tensor is looked up, in the shape that the model wants, without memory.

#include "llama.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

static constexpr int32_t N_BATCH = 512; // llama.cpp's default n_ubatch

static const char * USAGE =
    "usage: %s -m MODEL -c N [options] [TOKENS]\n"
    "       %s -m MODEL --check\n"
    "\n"
    "  TOKENS            file of raw int32 token ids (default: stdin)\n"
    "  -m, --model FILE  the GGUF\n"
    "  -c, --ctx-size N  tokens per chunk\n"
    "  -t, --threads N   threads (default: the number of hardware threads)\n"
    "  -o, --output FILE where the logits go (default: stdout)\n"
    "  --check           only see whether llama.cpp loads the GGUF, without its weights\n"
    "  --encoder N       ids before each chunk that the model's encoder reads (default: 0)\n"
    "  --from N          first position of a chunk to write (default: 0)\n"
    "  -ngl, --n-gpu-layers N  layers on this machine's GPUs (default: 0)\n"
    "  --rpc SERVERS     put all layers on these ggml-rpc-server workers, host:port,host:port\n"
    "  --no-repack       leave the weights as they are in the file\n"
    "  --kv-f32          F32 KV cache and no flash attention (default: as llama.cpp, F16 and auto)\n"
    "  -v, --verbose     show the log of llama.cpp\n";

struct options {
    std::string model;
    std::string tokens;
    std::string output;
    std::string rpc;
    int32_t n_ctx     = 0;
    int32_t n_threads = (int32_t) std::max(1u, std::thread::hardware_concurrency());
    int32_t from      = 0;
    int32_t n_gpu     = 0; // layers
    int32_t n_encoder = 0; // tokens
    bool    no_repack = false;
    bool    kv_f32    = false;
    bool    check     = false;
    bool    verbose   = false;
};

struct file_deleter {
    void operator()(FILE * file) const { fclose(file); }
};
using file_ptr = std::unique_ptr<FILE, file_deleter>;

[[noreturn]] static void die(const std::string & message) {
    fprintf(stderr, "sherry-logits: error: %s\n", message.c_str());
    exit(1);
}

static int32_t parse_int(const std::string & flag, const std::string & text, int32_t lowest) {
    char * end = nullptr;
    const long value = strtol(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || value < lowest || value > INT32_MAX) {
        die(flag + ": not an integer of at least " + std::to_string(lowest) + ": '" + text + "'");
    }
    return (int32_t) value;
}

static options parse(int argc, char ** argv) {
    options opt;
    int i = 1;
    const auto value = [&]() -> std::string {
        if (i + 1 >= argc) {
            die(std::string(argv[i]) + ": a value is missing");
        }
        return argv[++i];
    };
    for (; i < argc; ++i) {
        const std::string arg = argv[i];
        if      (arg == "-m" || arg == "--model")    { opt.model     = value(); }
        else if (arg == "-o" || arg == "--output")   { opt.output    = value(); }
        else if (arg == "-c" || arg == "--ctx-size") { opt.n_ctx     = parse_int(arg, value(), 1); }
        else if (arg == "-t" || arg == "--threads")  { opt.n_threads = parse_int(arg, value(), 1); }
        else if (arg == "--encoder")                 { opt.n_encoder = parse_int(arg, value(), 1); }
        else if (arg == "--from")                    { opt.from      = parse_int(arg, value(), 0); }
        else if (arg == "-ngl" || arg == "--n-gpu-layers") { opt.n_gpu = parse_int(arg, value(), 0); }
        else if (arg == "--rpc")                     { opt.rpc       = value(); }
        else if (arg == "--no-repack")               { opt.no_repack = true; }
        else if (arg == "--kv-f32")                  { opt.kv_f32    = true; }
        else if (arg == "--check")                   { opt.check     = true; }
        else if (arg == "-v" || arg == "--verbose")  { opt.verbose   = true; }
        else if (arg == "-h" || arg == "--help")     { printf(USAGE, argv[0], argv[0]); exit(0); }
        else if (arg[0] != '-' && opt.tokens.empty()) { opt.tokens = arg; }
        else { die("unknown argument '" + arg + "' (--help lists them)"); }
    }
    if (opt.model.empty() || (opt.n_ctx == 0 && !opt.check)) {
        die("-m MODEL and -c N are needed (--help lists all)");
    }
    if (opt.n_gpu > 0 && !opt.rpc.empty()) {
        die("-ngl and --rpc exclude each other");
    }
    if (opt.n_encoder > N_BATCH) {
        die("--encoder takes " + std::to_string(N_BATCH) + " tokens at most");
    }
    if (opt.from >= opt.n_ctx && !opt.check) {
        die("--from " + std::to_string(opt.from) + " lies outside a chunk of " + std::to_string(opt.n_ctx));
    }
    return opt;
}

// The devices of RPC workers, "host:port,host:port", ended by a null; without workers none at all.
static std::vector<ggml_backend_dev_t> rpc_devices(const std::string & servers) {
    std::vector<ggml_backend_dev_t> devices;
    std::istringstream list(servers);
    for (std::string server; std::getline(list, server, ',');) {
        using add_server_t = ggml_backend_reg_t (*)(const char *);
        const ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
        if (rpc == nullptr) {
            die("--rpc: this build has no RPC backend");
        }
        const auto add_server =
            reinterpret_cast<add_server_t>(ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server"));
        const ggml_backend_reg_t worker = add_server == nullptr ? nullptr : add_server(server.c_str());
        if (worker == nullptr) {
            die("--rpc " + server + ": has no device");
        }
        for (size_t i = 0; i < ggml_backend_reg_dev_count(worker); ++i) {
            devices.push_back(ggml_backend_reg_dev_get(worker, i));
        }
    }
    devices.push_back(nullptr);
    return devices;
}

// The next chunk of token ids, each within the vocabulary; false where the input ends.
static bool read_chunk(FILE * in, std::vector<llama_token> & chunk, int32_t n_vocab) {
    static_assert(sizeof(llama_token) == sizeof(int32_t), "token ids are int32");
    const size_t size = chunk.size() * sizeof(llama_token);
    const size_t n    = fread(chunk.data(), 1, size, in);
    if (ferror(in)) {
        die(std::string("reading the tokens: ") + strerror(errno));
    }
    if (n == 0) {
        return false;
    }
    if (n != size) {
        die("the tokens end within a chunk: " + std::to_string(n) + " of " + std::to_string(size) + " bytes");
    }
    for (const llama_token token : chunk) {
        if (token < 0 || token >= n_vocab) {
            die("token " + std::to_string(token) + " is not in the model's vocabulary of " + std::to_string(n_vocab));
        }
    }
    return true;
}

static void flush(FILE * out) {
    if (fflush(out) != 0) {
        die(std::string("writing the logits: ") + strerror(errno));
    }
}

static void write_all(FILE * out, const void * data, size_t size) {
    if (fwrite(data, 1, size, out) != size) {
        die(std::string("writing the logits: ") + strerror(errno));
    }
}

// Evaluates one chunk, and what the encoder reads before it, from an empty context; writes its logits from position
// opt.from on.
static void run_chunk(llama_context * ctx, llama_token * chunk, int32_t n_vocab, const options & opt, FILE * out) {
    llama_memory_clear(llama_get_memory(ctx), true);
    if (opt.n_encoder > 0) {
        const int32_t status = llama_encode(ctx, llama_batch_get_one(chunk, opt.n_encoder));
        if (status != 0) {
            die("llama_encode failed with status " + std::to_string(status));
        }
        chunk += opt.n_encoder;
    }
    llama_batch batch = llama_batch_init(N_BATCH, 0, 1);
    for (int32_t begin = 0; begin < opt.n_ctx; begin += N_BATCH) {
        batch.n_tokens = std::min(N_BATCH, opt.n_ctx - begin);
        for (int32_t k = 0; k < batch.n_tokens; ++k) {
            batch.token[k]     = chunk[begin + k];
            batch.pos[k]       = begin + k;
            batch.n_seq_id[k]  = 1;
            batch.seq_id[k][0] = 0;
            batch.logits[k]    = begin + k >= opt.from;
        }
        const int32_t status = llama_decode(ctx, batch);
        if (status != 0) {
            die("llama_decode failed with status " + std::to_string(status));
        }
        for (int32_t k = std::max(0, opt.from - begin); k < batch.n_tokens; ++k) {
            const float * logits = llama_get_logits_ith(ctx, k);
            if (logits == nullptr) {
                die("llama.cpp has no logits at position " + std::to_string(begin + k));
            }
            write_all(out, logits, sizeof(float) * n_vocab);
        }
    }
    llama_batch_free(batch);
}

int main(int argc, char ** argv) {
    const options opt = parse(argc, argv);

    if (!opt.verbose) {
        llama_log_set([](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                fputs(text, stderr);
            }
        }, nullptr);
    }
    ggml_backend_load_all();

    std::vector<ggml_backend_dev_t> devices = rpc_devices(opt.rpc);
    llama_model_params model_params = llama_model_default_params();
    if (opt.n_gpu > 0) {
        model_params.n_gpu_layers = opt.n_gpu; // on all devices, llama.cpp's default
    } else {
        model_params.devices = devices.data();
    }
    model_params.use_extra_bufts = !opt.no_repack;
    if (opt.check) {
        model_params.no_alloc  = true;
        model_params.load_mode = LLAMA_LOAD_MODE_NONE; // a mapping would be memory
    }
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
        llama_model_load_from_file(opt.model.c_str(), model_params), llama_model_free);
    if (!model) {
        die(opt.model + ": llama.cpp cannot load it");
    }
    if (opt.check) {
        return 0;
    }

    if (llama_model_has_encoder(model.get()) != (opt.n_encoder > 0)) {
        die(opt.model + (opt.n_encoder > 0 ? ": has no encoder" : ": has an encoder, which needs --encoder N"));
    }

    llama_context_params ctx_params = llama_context_default_params();
    ctx_params.n_ctx           = std::max(opt.n_ctx, opt.n_encoder); // an encoder reads no more than a context has
    ctx_params.n_batch         = N_BATCH;
    ctx_params.n_ubatch        = N_BATCH;
    ctx_params.n_threads       = opt.n_threads;
    ctx_params.n_threads_batch = opt.n_threads;
    if (opt.kv_f32) {
        ctx_params.type_k          = GGML_TYPE_F32;
        ctx_params.type_v          = GGML_TYPE_F32;
        ctx_params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx(
        llama_init_from_model(model.get(), ctx_params), llama_free);
    if (!ctx) {
        die(opt.model + ": llama.cpp cannot make a context of " + std::to_string(opt.n_ctx) + " tokens");
    }

    file_ptr tokens(opt.tokens.empty() ? nullptr : fopen(opt.tokens.c_str(), "rb"));
    if (!opt.tokens.empty() && !tokens) {
        die(opt.tokens + ": " + strerror(errno));
    }
    file_ptr output(opt.output.empty() ? nullptr : fopen(opt.output.c_str(), "wb"));
    if (!opt.output.empty() && !output) {
        die(opt.output + ": " + strerror(errno));
    }
    FILE * in  = tokens ? tokens.get() : stdin;
    FILE * out = output ? output.get() : stdout;

    const int32_t n_vocab  = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    const int32_t header[] = { n_vocab, opt.n_ctx - opt.from };
    write_all(out, "SHLOGITS", 8);
    write_all(out, header, sizeof(header));
    flush(out);
    std::vector<llama_token> chunk(opt.n_encoder + opt.n_ctx);
    while (read_chunk(in, chunk, n_vocab)) {
        run_chunk(ctx.get(), chunk.data(), n_vocab, opt, out);
        flush(out);
    }
    return 0;
}
