// Rates of llama.cpp through its C interface alone: no tokenizer, no server, no sampler beyond the largest logit.
//
//   llama_rate MODEL.gguf decode|prefill BATCH,BATCH,... CONTEXT TOKENS ROUNDS THREADS KV
//   llama_rate MODEL.gguf follow TEXT TOKENS THREADS KV
//
// follow: the text of the likeliest tokens behind TEXT, for comparisons of what programs compute.
// decode: BATCH sequences with prompts of CONTEXT random tokens; timed is what comes after the first new token of each,
// TOKENS - 1 calls of one token for every sequence. prefill: BATCH prompts of CONTEXT tokens, up to the logits of the last
// one. A short round runs first and does not count. Prints one JSON object.
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const std::string & message) {
    std::fprintf(stderr, "llama_rate: %s\n", message.c_str());
    std::exit(1);
}

int number(const char * text, const char * name) {
    char * end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end != 0 || value < 1 || value > 1 << 20) {
        fail(std::string(name) + " is " + text + ", expected an integer from 1 to 1048576");
    }
    return static_cast<int>(value);
}

struct Dice {
    uint64_t state;

    llama_token below(int n) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<llama_token>((state >> 20) % static_cast<uint64_t>(n));
    }
};

struct Bench {
    llama_context * context;
    int vocab;
    int batch;
    int length;
    llama_batch rows;

    void add(llama_token token, int position, int sequence, bool wanted) {
        const int at = rows.n_tokens++;
        rows.token[at] = token;
        rows.pos[at] = position;
        rows.n_seq_id[at] = 1;
        rows.seq_id[at][0] = sequence;
        rows.logits[at] = wanted;
    }

    void decode() {
        if (llama_decode(context, rows) != 0) {
            fail("llama_decode failed");
        }
    }

    llama_token likeliest(int row) {
        const float * logits = llama_get_logits_ith(context, row);
        if (logits == nullptr) {
            fail("no logits");
        }
        // Two plain passes, which the compiler turns into vector instructions.
        float most = logits[0];
        for (int i = 1; i < vocab; i++) {
            most = std::max(most, logits[i]);
        }
        if (!std::isfinite(most)) {
            fail("a logit is not finite");
        }
        return static_cast<llama_token>(std::find(logits, logits + vocab, most) - logits);
    }

    // Prompts one after another; the token after each.
    std::vector<llama_token> prompts(Dice dice) {
        llama_memory_clear(llama_get_memory(context), true);
        std::vector<llama_token> next;
        for (int s = 0; s < batch; s++) {
            rows.n_tokens = 0;
            for (int i = 0; i < length; i++) {
                add(dice.below(vocab), i, s, i + 1 == length);
            }
            decode();
            next.push_back(likeliest(length - 1));
        }
        return next;
    }

    void step(std::vector<llama_token> & next, int position) {
        rows.n_tokens = 0;
        for (int s = 0; s < batch; s++) {
            add(next[s], position, s, true);
        }
        decode();
        for (int s = 0; s < batch; s++) {
            next[s] = likeliest(s);
        }
    }
};

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Task {
    bool prefill;
    int batch, length, tokens, rounds, threads;
    bool kv_f32;
};

// The text of the likeliest tokens behind a text.
std::string follow(llama_model * model, const std::string & text, const Task & task) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::vector<llama_token> prompt(text.size() + 2);
    const int length = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), prompt.data(),
                                      static_cast<int32_t>(prompt.size()), true, false);
    if (length < 1) {
        fail("the text has no tokens");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>((length + task.tokens + 255) / 256 * 256);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(length);
    params.n_threads = params.n_threads_batch = task.threads;
    params.type_k = params.type_v = task.kv_f32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        fail("no context of this size");
    }
    Bench bench{context, llama_vocab_n_tokens(vocab), 1, length, llama_batch_init(length, 0, 1)};
    bench.rows.n_tokens = 0;
    for (int i = 0; i < length; i++) {
        bench.add(prompt[i], i, 0, i + 1 == length);
    }
    bench.decode();
    std::vector<llama_token> next{bench.likeliest(length - 1)};
    std::string found;
    for (int i = 0; i < task.tokens; i++) {
        char piece[256];
        const int size = llama_token_to_piece(vocab, next[0], piece, sizeof piece, 0, true);
        found.append(piece, static_cast<size_t>(std::max(size, 0)));
        if (i + 1 < task.tokens) {
            bench.step(next, length + i);
        }
    }
    llama_batch_free(bench.rows);
    llama_free(context);
    return found;
}

// Rates of all rounds, as a list.
std::string measure(llama_model * model, const Task & task) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(task.batch * ((task.length + task.tokens + 255) / 256 * 256));
    params.n_batch = static_cast<uint32_t>(std::max(task.length, task.batch));
    params.n_ubatch = static_cast<uint32_t>(std::max(512, task.batch));
    params.n_seq_max = static_cast<uint32_t>(task.batch);
    params.n_threads = params.n_threads_batch = task.threads;
    params.type_k = params.type_v = task.kv_f32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
    params.no_perf = true;
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        fail("no context of this size");
    }
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    Bench bench{context, vocab, task.batch, task.length, llama_batch_init(static_cast<int32_t>(params.n_batch), 0, 1)};
    std::string rates;
    std::vector<llama_token> first;
    for (int round = 0; round <= task.rounds; round++) {
        const int calls = round == 0 ? std::min(3, task.tokens - 1) : task.tokens - 1;
        double begin = now();
        std::vector<llama_token> next = bench.prompts(Dice{88172645463325252ull});
        double amount = static_cast<double>(task.batch) * task.length;
        if (!task.prefill) {
            begin = now();
            for (int i = 0; i < calls; i++) {
                bench.step(next, task.length + i);
            }
            amount = static_cast<double>(task.batch) * calls;
        }
        const double rate = amount / (now() - begin);
        if (round > 0) {
            rates += (round > 1 ? ", " : "") + std::to_string(rate);
            if (round > 1 && next != first) {
                fail("two rounds gave different tokens");
            }
            first = next;
        }
    }
    llama_batch_free(bench.rows);
    llama_free(context);
    return rates;
}

}  // namespace

int main(int argc, char ** argv) {
    const bool follows = argc > 2 && std::string(argv[2]) == "follow";
    if (argc != (follows ? 7 : 9)) {
        fail("expected MODEL.gguf decode|prefill BATCH,BATCH,... CONTEXT TOKENS ROUNDS THREADS f16|f32, or "
             "MODEL.gguf follow TEXT TOKENS THREADS f16|f32");
    }
    Task task{};
    if (!follows) {
        task.prefill = std::string(argv[2]) == "prefill";
        task.length = number(argv[4], "CONTEXT");
        task.rounds = number(argv[6], "ROUNDS");
    }
    task.tokens = number(argv[follows ? 4 : 5], "TOKENS");
    task.threads = number(argv[follows ? 5 : 7], "THREADS");
    task.kv_f32 = std::string(argv[follows ? 6 : 8]) == "f32";
    if (!follows && task.tokens < 2) {
        fail("TOKENS is 1, expected at least 2");
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            std::fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        fail(std::string(argv[1]) + " cannot be loaded");
    }
    if (follows) {
        std::printf("%s\n", follow(model, argv[3], task).c_str());
        llama_model_free(model);
        return 0;
    }
    std::string results;
    std::stringstream batches(argv[3]);
    for (std::string batch; std::getline(batches, batch, ',');) {
        task.batch = number(batch.c_str(), "BATCH");
        results += (results.empty() ? "" : ", ") + ("{\"batch\": " + batch + ", \"tokens_per_second\": [") +
                   measure(model, task) + "]}";
    }
    std::printf("{\"results\": [%s], \"weight_bytes\": %llu, \"system\": \"%s\"}\n", results.c_str(),
                static_cast<unsigned long long>(llama_model_size(model)), llama_print_system_info());
    llama_model_free(model);
    return 0;
}
