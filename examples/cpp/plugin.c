/* plugin LIBRARY ARTIFACT TOKEN...: open libshiftadd (or a single library) by dlopen, continue a sequence of
 * token ids greedily by 16 tokens, and print their ids. Nothing of shiftadd is linked. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <shiftadd/shiftadd.h>

enum { NEW_TOKENS = 16 };

/* The functions that this program uses. */
static struct {
  const char* (*last_error)(void);
  shiftadd_status (*model_load)(const char*, const shiftadd_model_params*, shiftadd_model**);
  void (*model_free)(shiftadd_model*);
  shiftadd_status (*session_create)(shiftadd_model*, shiftadd_session**);
  void (*session_free)(shiftadd_session*);
  shiftadd_generate_params (*generate_default_params)(void);
  shiftadd_status (*generate)(shiftadd_session*, const int32_t*, size_t, const shiftadd_generate_params*, int32_t*,
                              size_t*, shiftadd_finish*);
} api;

static int open_library(const char* path) {
  const struct {
    const char* name;
    void** place;
  } functions[] = {
      {"shiftadd_last_error", (void**)&api.last_error},
      {"shiftadd_model_load", (void**)&api.model_load},
      {"shiftadd_model_free", (void**)&api.model_free},
      {"shiftadd_session_create", (void**)&api.session_create},
      {"shiftadd_session_free", (void**)&api.session_free},
      {"shiftadd_generate_default_params", (void**)&api.generate_default_params},
      {"shiftadd_generate", (void**)&api.generate},
  };
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  for (size_t i = 0; library && i < sizeof(functions) / sizeof(functions[0]); ++i) {
    *functions[i].place = dlsym(library, functions[i].name);
    if (!*functions[i].place) library = NULL;
  }
  if (!library) fprintf(stderr, "%s\n", dlerror());
  return library != NULL;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: plugin LIBRARY ARTIFACT TOKEN...\n");
    return 2;
  }
  if (!open_library(argv[1])) return 3;
  size_t count = (size_t)argc - 3, made = 0;
  int32_t tokens[NEW_TOKENS], *prompt = malloc(count * sizeof(*prompt));
  if (!prompt) return 5;
  for (size_t i = 0; i < count; ++i) prompt[i] = (int32_t)atoi(argv[i + 3]);

  shiftadd_model* model = NULL;
  shiftadd_session* session = NULL;
  shiftadd_status status = api.model_load(argv[2], NULL, &model);
  if (status == SHIFTADD_OK) status = api.session_create(model, &session);
  if (status == SHIFTADD_OK) {
    shiftadd_generate_params params = api.generate_default_params();
    params.max_new_tokens = NEW_TOKENS;
    status = api.generate(session, prompt, count, &params, tokens, &made, NULL);
  }
  if (status != SHIFTADD_OK) fprintf(stderr, "%s\n", api.last_error());
  for (size_t i = 0; i < made; ++i) printf("%d%c", tokens[i], i + 1 < made ? ' ' : '\n');
  api.session_free(session);
  api.model_free(model);
  free(prompt);
  return status;
}
