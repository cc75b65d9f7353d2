/* Loads and runs engines of dsv2-compile: no Python, no torch. The C ABI; dsv2.hpp is a thin C++ layer over it.
 *
 * Handles are numbers, never pointers: one that is zero, closed, or of another kind is DSV2_USAGE and never touched.
 * Every function returns a code and, where it fails, fills *error if that is not NULL. Nothing is thrown. Functions may
 * be called from any thread; calls on one session wait for each other.
 */
#ifndef DSV2_H
#define DSV2_H

#include <stddef.h>
#include <stdint.h>

#if defined(DSV2_BUILD)
#define DSV2_API __attribute__((visibility("default")))
#else
#define DSV2_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* As the exit codes of the command line. */
typedef enum dsv2_code {
  DSV2_OK = 0,
  DSV2_INTERNAL = 1,
  DSV2_USAGE = 2,
  DSV2_MODEL = 3,        /* malformed input or tokenizer */
  DSV2_NUMERIC = 4,      /* NaN or infinity where logits should be; a check of the numbers failed */
  DSV2_INCOMPATIBLE = 5, /* no GPU or another one, an old driver, another version */
  DSV2_RESOURCE = 6,     /* out of memory, of cache pages, or of room in a queue */
  DSV2_INTEGRITY = 8     /* a file is not what was built */
} dsv2_code;

/* UTF-8, each cut to its room and terminated. ``problems``: one a line, possibly none. */
typedef struct dsv2_error {
  dsv2_code code;
  char cause[1024];
  char remedy[512];
  char problems[4096];
} dsv2_error;

typedef struct { uint64_t id; } dsv2_engine;
typedef struct { uint64_t id; } dsv2_session;
typedef struct { uint64_t id; } dsv2_scheduler;

DSV2_API const char *dsv2_version(void);

/* ---- Engine ---------------------------------------------------------------------------------------------------- */

typedef struct dsv2_load_options {
  int32_t threads;         /* per program call of a CPU engine; 0: all that the process may use */
  int64_t cache_tokens;    /* positions of the KV cache of a GPU engine, of all sessions; 0: as many as fit */
  const char *onnxruntime; /* ONNX Runtime's library; NULL: $DSV2_ONNXRUNTIME, else libonnxruntime.so.1 */
} dsv2_load_options;

typedef struct dsv2_engine_info {
  int64_t vocab_size, layers, cache_dim, max_batch_size, max_seq_len;
  int64_t page_size, page_count, pages_free; /* of the cache that all sessions share; 0 where each has its own */
  int64_t bos_token;                         /* -1: none */
  int64_t eos_tokens[256];
  int64_t eos_count;
  int32_t verified; /* 0: the numeric check of its build failed or was not run */
  char backend[64], target[64];
} dsv2_engine_info;

/* Checks every file's SHA-256, then loads. ``options`` may be NULL. */
DSV2_API dsv2_code dsv2_engine_load(const char *path, const dsv2_load_options *options, dsv2_engine *out,
                                    dsv2_error *error);
DSV2_API dsv2_code dsv2_engine_info_get(dsv2_engine engine, dsv2_engine_info *out, dsv2_error *error);
/* Later calls on it and on its sessions and schedulers are DSV2_USAGE. */
DSV2_API dsv2_code dsv2_engine_close(dsv2_engine engine, dsv2_error *error);

/* ---- Session --------------------------------------------------------------------------------------------------- */

/* ``top_k`` 0 and ``top_p`` 1 keep all tokens; both given, top_k cuts first. ``temperature`` 0 is greedy. */
typedef struct dsv2_sampling {
  double temperature;
  int64_t top_k;
  double top_p;
  uint64_t seed;
} dsv2_sampling;

/* How one token is chosen; ``uniform`` in [0, 1). */
typedef struct dsv2_draw {
  dsv2_sampling sampling;
  double uniform;
} dsv2_draw;

/* ``max_batch`` slots of ``max_tokens`` positions; max_tokens 0: the engine's limit. */
DSV2_API dsv2_code dsv2_session_open(dsv2_engine engine, int64_t max_batch, int64_t max_tokens, dsv2_session *out,
                                     dsv2_error *error);
/* tokens [rows, columns] padded on the right, lengths [rows], slots [rows] or NULL for 0..rows-1 -> logits of each
 * row's last valid token, [rows, vocab_size]. What a slot held before is discarded. */
DSV2_API dsv2_code dsv2_session_prefill(dsv2_session session, const int32_t *tokens, int64_t rows, int64_t columns,
                                        const int32_t *lengths, const int32_t *slots, float *logits,
                                        dsv2_error *error);
/* More tokens for sequences already there. */
DSV2_API dsv2_code dsv2_session_extend(dsv2_session session, const int32_t *tokens, int64_t rows, int64_t columns,
                                       const int32_t *lengths, const int32_t *slots, float *logits,
                                       dsv2_error *error);
/* One token for each: tokens [rows]. */
DSV2_API dsv2_code dsv2_session_decode(dsv2_session session, const int32_t *tokens, int64_t rows, const int32_t *slots,
                                       float *logits, dsv2_error *error);
/* As prefill, extend and decode -> the next token of each row, chosen by draws[row]: no logits leave a GPU. */
DSV2_API dsv2_code dsv2_session_start(dsv2_session session, const int32_t *tokens, int64_t rows, int64_t columns,
                                      const int32_t *lengths, const int32_t *slots, const dsv2_draw *draws,
                                      int32_t *next, dsv2_error *error);
DSV2_API dsv2_code dsv2_session_resume(dsv2_session session, const int32_t *tokens, int64_t rows, int64_t columns,
                                       const int32_t *lengths, const int32_t *slots, const dsv2_draw *draws,
                                       int32_t *next, dsv2_error *error);
DSV2_API dsv2_code dsv2_session_step(dsv2_session session, const int32_t *tokens, int64_t rows, const int32_t *slots,
                                     const dsv2_draw *draws, int32_t *next, dsv2_error *error);
/* Starts sequences from cache rows [layers, rows, positions, cache_dim] computed elsewhere. */
DSV2_API dsv2_code dsv2_session_restore(dsv2_session session, const float *cached, int64_t rows, int64_t positions,
                                        const int32_t *lengths, const int32_t *slots, dsv2_error *error);
/* Ends sequences; slots NULL: all. */
DSV2_API dsv2_code dsv2_session_free(dsv2_session session, const int32_t *slots, int64_t count, dsv2_error *error);
DSV2_API dsv2_code dsv2_session_length(dsv2_session session, int32_t slot, int64_t *out, dsv2_error *error);
DSV2_API dsv2_code dsv2_session_close(dsv2_session session, dsv2_error *error);

/* ``count`` random numbers in [0, 1) of stream number ``stream`` of ``seed``, for dsv2_draw. */
DSV2_API dsv2_code dsv2_uniforms(uint64_t seed, uint64_t stream, int64_t count, double *out, dsv2_error *error);

/* ---- Generation ------------------------------------------------------------------------------------------------ */

typedef enum dsv2_finish {
  DSV2_RUNNING = 0,
  DSV2_STOP = 1,      /* an end-of-sequence token of the model, or a stop token of the request */
  DSV2_LENGTH = 2,    /* max_new_tokens, or no room for more */
  DSV2_CANCELLED = 3, /* has no token */
  DSV2_FAILED = 4     /* has no token; ``code`` says why */
} dsv2_finish;

/* ``request``: the prompt's number in dsv2_generate, the number from dsv2_scheduler_submit else. ``token`` -1: none. */
typedef struct dsv2_token {
  uint64_t request;
  int32_t token;
  dsv2_finish finish;
  dsv2_code code;
  const char *cause; /* valid during the callback; NULL unless DSV2_FAILED */
} dsv2_token;

/* Nonzero cancels the request. Called one at a time. It must not wait for the scheduler that calls it. */
typedef int32_t (*dsv2_on_token)(const dsv2_token *token, void *user);

/* ``prompts``: the ids of all prompts, one after the other; lengths [count]. Prompts beyond max_batch_size wait for a
 * free slot. Returns when all are done; a prompt that fails is its error. */
DSV2_API dsv2_code dsv2_generate(dsv2_engine engine, const int32_t *prompts, const int64_t *lengths, int64_t count,
                                 int64_t max_new_tokens, const dsv2_sampling *sampling, dsv2_on_token on_token,
                                 void *user, dsv2_error *error);

/* ---- Continuous batching --------------------------------------------------------------------------------------- */

/* Zero in a field: its default. */
typedef struct dsv2_scheduler_options {
  int64_t max_batch;    /* sequences at once; the engine's limit */
  int64_t max_tokens;   /* positions of a sequence; the engine's limit */
  int64_t chunk_tokens; /* most prompt tokens between two decode steps; 256 */
  int64_t max_waiting;  /* requests that wait for a slot; 1024 */
} dsv2_scheduler_options;

typedef struct dsv2_request {
  const int32_t *prompt;
  int64_t prompt_length;
  int64_t max_new_tokens;
  dsv2_sampling sampling;
  uint64_t stream; /* of its random numbers */
  const int32_t *stop_tokens;
  int64_t stop_count;
} dsv2_request;

typedef struct dsv2_scheduler_stats {
  int64_t waiting, live, max_batch;
  int64_t pages_committed, page_count; /* 0 where the cache has no pages */
  uint64_t submitted, finished, cancelled, failed, prompt_tokens, new_tokens, steps;
} dsv2_scheduler_stats;

/* ``options`` may be NULL. A thread of the scheduler's own does the work and calls back. */
DSV2_API dsv2_code dsv2_scheduler_open(dsv2_engine engine, const dsv2_scheduler_options *options, dsv2_scheduler *out,
                                       dsv2_error *error);
/* ``on_token`` is called for every token and, where a request ends without one, once more. DSV2_RESOURCE: the queue is
 * full, or the cache could never hold it. */
DSV2_API dsv2_code dsv2_scheduler_submit(dsv2_scheduler scheduler, const dsv2_request *request, dsv2_on_token on_token,
                                         void *user, uint64_t *out, dsv2_error *error);
/* A request that has ended is no error. */
DSV2_API dsv2_code dsv2_scheduler_cancel(dsv2_scheduler scheduler, uint64_t request, dsv2_error *error);
/* Returns when nothing waits and nothing is live. */
DSV2_API dsv2_code dsv2_scheduler_drain(dsv2_scheduler scheduler, dsv2_error *error);
DSV2_API dsv2_code dsv2_scheduler_stats_get(dsv2_scheduler scheduler, dsv2_scheduler_stats *out, dsv2_error *error);
/* Cancels what is left; returns after the last callback. */
DSV2_API dsv2_code dsv2_scheduler_close(dsv2_scheduler scheduler, dsv2_error *error);

#ifdef __cplusplus
}
#endif
#endif
