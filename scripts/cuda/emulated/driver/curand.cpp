// libcurand.so.10 of the emulated device. candle makes a generator with each device; the program draws no number from it, since
// each backend would give others, and a call for one finds no function here.
#define EMULATED_API extern "C" __attribute__((visibility("default")))
namespace {
char generator;
}
EMULATED_API int curandCreateGenerator(void **made, int) { return *made = &generator, 0; }
EMULATED_API int curandDestroyGenerator(void *) { return 0; }
EMULATED_API int curandSetStream(void *, void *) { return 0; }
EMULATED_API int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
EMULATED_API int curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
