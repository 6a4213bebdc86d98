/* shiftadd.h: run an artifact that `shiftadd-tvm compile` wrote. The C ABI of libshiftadd.
 *
 *     shiftadd_model   one loaded artifact: its functions, its mapped parameters, a pool of cache pages
 *     shiftadd_session one sequence of a model: its tokens, its pages, the logits of its last token
 *     shiftadd_result  the output tensors of a function that was called by name
 *
 * Errors. Whatever can fail returns a shiftadd_status; on anything but SHIFTADD_OK the outputs are
 * untouched and shiftadd_last_error() holds one sentence: what, where, expected, found, remedy. No
 * exception leaves the library, and nothing ends the process. NULL handles are refused with
 * SHIFTADD_ERROR_USAGE, or ignored by the *_free functions.
 *
 * Threads. Any function may be called from any thread. A model may be used by many threads at once; one
 * thread of its own launches all of its kernels, one call after the other. A session is used by one call
 * at a time: a second one meanwhile is refused with SHIFTADD_ERROR_USAGE, except
 * shiftadd_session_cancel(), which is meant for another thread. Sessions keep their model alive, so
 * handles may be freed in any order, each once, and no longer used.
 *
 * Text. Only token ids here: shiftadd_text.h turns them into text and back.
 *
 * docs/cpp.md says more. Artifacts are code: load only what you trust. */
#ifndef SHIFTADD_SHIFTADD_H_
#define SHIFTADD_SHIFTADD_H_

#include <stddef.h>
#include <stdint.h>

#ifndef SHIFTADD_API
#if defined(__GNUC__)
#define SHIFTADD_API __attribute__((visibility("default")))
#else
#define SHIFTADD_API
#endif
#endif

/* Of this header. The SONAME ends with the ABI's number: it grows when a program that was built with an
 * older header would break. */
#define SHIFTADD_VERSION "0.1.0"
#define SHIFTADD_ABI_VERSION 0

#ifdef __cplusplus
extern "C" {
#endif

typedef struct shiftadd_model shiftadd_model;
typedef struct shiftadd_session shiftadd_session;
typedef struct shiftadd_result shiftadd_result;

/* The numbers up to 4 are the command line's exit codes. */
typedef enum shiftadd_status {
  SHIFTADD_OK = 0,
  SHIFTADD_ERROR_INTERNAL = 1,    /* a bug, of this library or of a kernel */
  SHIFTADD_ERROR_USAGE = 2,       /* an argument, or the moment of the call, is wrong */
  SHIFTADD_ERROR_UNSUPPORTED = 3, /* a machine, a version or a kind of artifact that cannot run here */
  SHIFTADD_ERROR_BAD_FILE = 4,    /* an artifact that is missing or damaged */
  SHIFTADD_ERROR_NO_MEMORY = 5,   /* memory, or the pages of the cache, are used up */
  SHIFTADD_CANCELLED = 6          /* shiftadd_session_cancel() was called */
} shiftadd_status;

/* ---------------------------------------------------------------- versions and errors */

/* The version of the library that is loaded, as SHIFTADD_VERSION and SHIFTADD_ABI_VERSION. */
SHIFTADD_API const char* shiftadd_version(void);
SHIFTADD_API int32_t shiftadd_abi_version(void);

/* The name of a status, such as "bad file"; never NULL. */
SHIFTADD_API const char* shiftadd_status_name(shiftadd_status status);

/* The sentence of the calling thread's last failure, "" before any; valid until its next failure. */
SHIFTADD_API const char* shiftadd_last_error(void);

/* ---------------------------------------------------------------- TVM's runtime */

/* Load TVM's two libraries from these paths. Needed only where they lie neither beside libshiftadd nor
 * where the loader finds them by name: the first shiftadd_model_load() loads them otherwise. NULL as
 * `ffi_library`: libtvm_ffi.so beside `runtime_library`. Once they are loaded, further calls do nothing. */
SHIFTADD_API shiftadd_status shiftadd_load_runtime(const char* runtime_library, const char* ffi_library);

/* ---------------------------------------------------------------- models */

/* Where a processor reads the parameters. */
typedef enum shiftadd_load {
  SHIFTADD_LOAD_AS_COMPILED = 0, /* as `compile --load` has it */
  SHIFTADD_LOAD_MAP = 1,         /* in the mapped file: loaded as it is read, shared between processes */
  SHIFTADD_LOAD_HUGEPAGES = 2    /* in a copy, on huge pages where Linux gives them: small models are faster */
} shiftadd_load;

typedef struct shiftadd_model_params {
  int32_t threads;      /* that compute; 0: as many as this process may use processors */
  int32_t sequences;    /* full contexts that the cache has pages for; pages cost memory once touched */
  int32_t check_hashes; /* not 0: hash the parameters too, as `shiftadd-tvm verify` does (seconds) */
  int32_t load;         /* a shiftadd_load */
  int32_t reserved[12]; /* 0 */
} shiftadd_model_params;

/* Threads 0, sequences 4, check_hashes 0, SHIFTADD_LOAD_AS_COMPILED. */
SHIFTADD_API shiftadd_model_params shiftadd_model_default_params(void);

/* Load the artifact in the folder `path`, or in one file: `tar -cf FILE -C FOLDER .` of a folder, which is
 * mapped as it is (model.so alone goes to a temporary file). `params` may be NULL. A load sets the environment
 * variables TVM_NUM_THREADS and, where they are not set, TVM_BIND_THREADS and
 * TVM_THREAD_POOL_SPIN_COUNT: TVM's threads read them. */
SHIFTADD_API shiftadd_status shiftadd_model_load(const char* path, const shiftadd_model_params* params,
                                                 shiftadd_model** model);
SHIFTADD_API void shiftadd_model_free(shiftadd_model* model);

typedef struct shiftadd_model_info {
  const char* kind;      /* "decoder", "encoder" or "function"; the numbers below are a decoder's */
  int32_t context;       /* tokens that a sequence can hold */
  int32_t vocabulary;    /* logits of a token */
  int32_t bos;           /* -1: none */
  const int32_t* eos;    /* the tokens that end a text */
  size_t eos_count;
  int32_t chunk;         /* tokens that a prefill takes at once; longer prompts go in pieces */
  const int32_t* batches; /* numbers of sequences that shiftadd_decode_batch() takes, ascending */
  size_t batch_count;
  int32_t threads;       /* that compute */
  int32_t free_pages;    /* of the cache, at this moment */
  int32_t page;          /* positions of a page */
  int64_t parameter_bytes; /* mapped, and in memory once read */
} shiftadd_model_info;

/* Fill `info`; its pointers are valid as long as the model. */
SHIFTADD_API shiftadd_status shiftadd_model_get_info(const shiftadd_model* model,
                                                     shiftadd_model_info* info);

/* The manifest as it stands in the artifact: JSON, `size` bytes, 0 after them. Valid as long as the model;
 * NULL for a NULL model. docs/artifact.md says what it holds. */
SHIFTADD_API const char* shiftadd_model_manifest(const shiftadd_model* model, size_t* size);

/* One value of the manifest by its path, such as "model.type" or "quantization.effective_bits": a string
 * as it is, anything else as JSON. Copies at most `capacity` bytes with the 0 at the end, and sets `size`
 * to the bytes without it; call with capacity 0 to learn them. */
SHIFTADD_API shiftadd_status shiftadd_model_metadata(const shiftadd_model* model, const char* path,
                                                     char* buffer, size_t capacity, size_t* size);

/* What one call of an operator took, in seconds of the wall clock, with the operator's name as it stands in the
 * library; calls of the runtime's own begin with "vm.builtin.". It runs on the model's thread, and may not
 * call this library. On a GPU it is the time of the launch. */
typedef void (*shiftadd_profile_callback)(const char* op, double seconds, void* user);

/* Report every call of an operator to `callback` from now on; NULL ends it. Reading the clock costs a step
 * some ten nanoseconds a call. */
SHIFTADD_API shiftadd_status shiftadd_model_profile(shiftadd_model* model, shiftadd_profile_callback callback,
                                                    void* user);

/* The bytes of a file of the artifact that is no code, such as "tokenizer.json". Valid as long as the
 * model. SHIFTADD_ERROR_USAGE where the artifact lists none of that name. */
SHIFTADD_API shiftadd_status shiftadd_model_file(const shiftadd_model* model, const char* name,
                                                 const void** data, size_t* size);

/* ---------------------------------------------------------------- sessions */

/* A new, empty sequence; it takes pages from the model's pool as it grows. */
SHIFTADD_API shiftadd_status shiftadd_session_create(shiftadd_model* model, shiftadd_session** session);
SHIFTADD_API void shiftadd_session_free(shiftadd_session* session);

/* Forget every token and give the pages back; a pending cancellation is forgotten too. */
SHIFTADD_API shiftadd_status shiftadd_session_reset(shiftadd_session* session);

/* Forget the tokens from `length` on; there are no logits afterwards unless nothing was forgotten. */
SHIFTADD_API shiftadd_status shiftadd_session_truncate(shiftadd_session* session, size_t length);

/* A second session that goes on from the same tokens. Both share the pages; a page is copied before one
 * of them writes into it. The logits go along. */
SHIFTADD_API shiftadd_status shiftadd_session_fork(shiftadd_session* session, shiftadd_session** fork);

/* The tokens that the sequence holds; valid until the next call that changes the session. */
SHIFTADD_API shiftadd_status shiftadd_session_tokens(shiftadd_session* session, const int32_t** tokens,
                                                     size_t* count);

/* Make the call that runs on the session, or else its next one, return SHIFTADD_CANCELLED before its next
 * step. For any thread, and for signal handlers. What was appended before stays. */
SHIFTADD_API void shiftadd_session_cancel(shiftadd_session* session);

/* ---------------------------------------------------------------- computing */

/* Append tokens (at least one), and compute the logits of the last. A cancelled or failed call leaves
 * whole pieces of `chunk` tokens appended. */
SHIFTADD_API shiftadd_status shiftadd_prefill(shiftadd_session* session, const int32_t* tokens,
                                              size_t count);

/* Some rows of logits, float32 [rows, vocabulary], valid during the call. Return 0 to go on, anything
 * else to end with SHIFTADD_CANCELLED. It runs on the caller's thread, and may not change the session. */
typedef int32_t (*shiftadd_logits_callback)(const float* logits, size_t rows, size_t vocabulary,
                                            void* user);

/* As shiftadd_prefill(), and hand over the logits of every appended token, in order, a few rows at a
 * time: what the perplexity of a text needs. */
SHIFTADD_API shiftadd_status shiftadd_score(shiftadd_session* session, const int32_t* tokens, size_t count,
                                            shiftadd_logits_callback callback, void* user);

/* Append one token, and compute its logits. */
SHIFTADD_API shiftadd_status shiftadd_decode(shiftadd_session* session, int32_t token);

/* Append one token to each of `count` different sessions of one model, in one step; `count` is one of the
 * model's batches. */
SHIFTADD_API shiftadd_status shiftadd_decode_batch(shiftadd_session* const* sessions,
                                                   const int32_t* tokens, size_t count);

/* The logits float32 [vocabulary] of the last token; valid until the next call that changes the session. */
SHIFTADD_API shiftadd_status shiftadd_logits(shiftadd_session* session, const float** logits,
                                             size_t* vocabulary);

/* The same as a tensor float32 [1, vocabulary] that stays as it is until the result is freed. */
SHIFTADD_API shiftadd_status shiftadd_logits_result(shiftadd_session* session, shiftadd_result** result);

typedef struct shiftadd_sampling {
  float temperature;        /* 0: the likeliest token */
  int32_t top_k;            /* 0: off */
  float top_p;              /* 1: off */
  float repetition_penalty; /* 1: off; counts the tokens that the session holds */
  int64_t seed;             /* 0 or more: same seed, same tokens */
} shiftadd_sampling;

/* Greedy: 0, 0, 1, 1, 0. */
SHIFTADD_API shiftadd_sampling shiftadd_sampling_default_params(void);

/* Choose a token by the session's logits, and do not append it. `sampling` may be NULL (greedy); `step`
 * counts the tokens drawn before with this seed. */
SHIFTADD_API shiftadd_status shiftadd_sample(shiftadd_session* session, const shiftadd_sampling* sampling,
                                             int32_t step, int32_t* token);

/* One new token. Return 0 to go on, anything else to end the text after it. It runs on the caller's
 * thread, and may not change the session. */
typedef int32_t (*shiftadd_token_callback)(int32_t token, void* user);

typedef struct shiftadd_generate_params {
  shiftadd_sampling sampling;
  int32_t max_new_tokens;           /* 1 or more */
  int32_t ignore_eos;               /* not 0: an end-of-sequence token is a token as any other */
  shiftadd_token_callback callback; /* may be NULL */
  void* user;                       /* handed to the callback */
  void* reserved[4];                /* NULL */
} shiftadd_generate_params;

/* Greedy, 128 tokens, no callback. */
SHIFTADD_API shiftadd_generate_params shiftadd_generate_default_params(void);

typedef enum shiftadd_finish {
  SHIFTADD_FINISH_LENGTH = 0,  /* max_new_tokens */
  SHIFTADD_FINISH_EOS = 1,     /* an end-of-sequence token, which is not among the tokens */
  SHIFTADD_FINISH_CONTEXT = 2, /* the context is full */
  SHIFTADD_FINISH_CALLBACK = 3 /* the callback asked for it */
} shiftadd_finish;

/* Append the prompt, then draw tokens and append each before the next is drawn (the last one is not). An
 * empty prompt goes on from the logits that the session has. `params` may be NULL; the new tokens go to tokens[max_new_tokens], their number to `token_count`, the
 * reason of the end to `finish`; each of the three may be NULL. `token_count` is set in case of failure
 * and cancellation too. */
SHIFTADD_API shiftadd_status shiftadd_generate(shiftadd_session* session, const int32_t* prompt,
                                               size_t prompt_count, const shiftadd_generate_params* params,
                                               int32_t* tokens, size_t* token_count,
                                               shiftadd_finish* finish);

/* ---------------------------------------------------------------- functions by name */

typedef enum shiftadd_dtype {
  SHIFTADD_FLOAT32 = 0,
  SHIFTADD_FLOAT16 = 1,
  SHIFTADD_INT8 = 2,
  SHIFTADD_INT16 = 3,
  SHIFTADD_INT32 = 4,
  SHIFTADD_INT64 = 5,
  SHIFTADD_UINT8 = 6,
  SHIFTADD_UINT16 = 7, /* also the bits of bfloat16 */
  SHIFTADD_UINT32 = 8,
  SHIFTADD_UINT64 = 9,
  SHIFTADD_BOOL = 10,  /* one byte each, 0 or 1 */
  SHIFTADD_FLOAT64 = 11
} shiftadd_dtype;

/* A dense, row-major tensor in memory, or what a signature says of one (`data` is NULL then, and a size
 * that varies is -1). A function may write into an input where the manifest's documentation says so. */
typedef struct shiftadd_tensor {
  const char* name;
  int32_t dtype; /* a shiftadd_dtype */
  int32_t ndim;
  const int64_t* shape; /* [ndim] */
  void* data;
} shiftadd_tensor;

/* How many functions the artifact exports, and the name of one; NULL where there is none. */
SHIFTADD_API size_t shiftadd_function_count(const shiftadd_model* model);
SHIFTADD_API const char* shiftadd_function_name(const shiftadd_model* model, size_t index);

/* The inputs and outputs of a function; valid as long as the model. */
SHIFTADD_API shiftadd_status shiftadd_function_signature(const shiftadd_model* model, const char* function,
                                                         const shiftadd_tensor** inputs,
                                                         size_t* input_count,
                                                         const shiftadd_tensor** outputs,
                                                         size_t* output_count);

/* Call a function with its inputs, found by their names, in any order; the parameters are added. An input
 * that begins at a multiple of 64 bytes is not copied. */
SHIFTADD_API shiftadd_status shiftadd_call(shiftadd_model* model, const char* function,
                                           const shiftadd_tensor* inputs, size_t input_count,
                                           shiftadd_result** result);

/* The outputs, valid until the result is freed. */
SHIFTADD_API size_t shiftadd_result_count(const shiftadd_result* result);
SHIFTADD_API shiftadd_status shiftadd_result_tensor(const shiftadd_result* result, size_t index,
                                                    shiftadd_tensor* tensor);
SHIFTADD_API void shiftadd_result_free(shiftadd_result* result);

#ifdef __cplusplus
}
#endif

#endif /* SHIFTADD_SHIFTADD_H_ */
