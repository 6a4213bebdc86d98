// cuBLAS on a processor, for the tests: the product that cuda/cublas.py asks for, as cuBLAS defines it.
#include <dlfcn.h>

#include <cstdlib>

typedef _Float16 half;
static const int TRANSPOSED = 1, PLAIN = 0, FLOAT16 = 2, SUM_FLOAT32 = 68, INVALID = 7;

extern "C" {
int cublasCreate_v2(void** handle) { return *handle = malloc(1), 0; }
int cublasSetStream_v2(void*, void*) { return 0; }
// C (m x n) = alpha · op(A) (m x k) · op(B) (k x n) + beta · C, column by column
int cublasGemmEx(void*, int of_a, int of_b, int m, int n, int k, const float* alpha, const half* a, int kind_a,
                 int lda, const half* b, int kind_b, int ldb, const float* beta, half* c, int kind_c, int ldc,
                 int sums, int) {
  if (of_a != TRANSPOSED || of_b != PLAIN || kind_a != FLOAT16 || kind_b != FLOAT16 || kind_c != FLOAT16)
    return INVALID;
  if (sums != SUM_FLOAT32 || lda < k || ldb < k || ldc < m || *beta != 0) return INVALID;
  for (int j = 0; j < n; j++)
    for (int i = 0; i < m; i++) {
      float sum = 0;
      for (int at = 0; at < k; at++) sum += (float)a[(size_t)i * lda + at] * (float)b[(size_t)j * ldb + at];
      c[(size_t)j * ldc + i] = (half)(*alpha * sum);
    }
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  ((void (*)(unsigned))dlsym(driver, "emulated_busy"))(1024);
  return 0;
}
}
