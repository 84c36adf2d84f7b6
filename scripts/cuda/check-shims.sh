#!/usr/bin/env bash
# check-shims.sh DIR: checks that a stand-in of DIR (see shims.sh) gives its error where the library is absent, and else calls
# it with all arguments, those in registers and those on the stack, the first time and later.
set -euo pipefail
dir=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As many arguments as any function of the driver has; floats are in registers of their own.
cat >"$work/driver.h" <<'EOC'
int cuInit(unsigned flags);
long cuLaunchKernel(long, long, long, long, long, long, long, long, long, long, double, double);
EOC
cat >"$work/driver.c" <<'EOC'
#include "driver.h"
int cuInit(unsigned flags) { return 40 + flags; }
long cuLaunchKernel(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j, double x, double y) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 1000 * x + 100000 * y;
}
EOC
cat >"$work/main.c" <<'EOC'
#include <stdio.h>
#include "driver.h"
int main(void) {
  printf("%d %d", cuInit(1), cuInit(2));
  for (int again = 0; again < 2; again++) printf(" %ld", cuLaunchKernel(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0.5, 2.0));
}
EOC
mkdir "$work/there"
cc -shared -fPIC "$work/driver.c" -o "$work/there/libcuda.so.1"
cc "$work/main.c" -L"$dir" -lcuda -o "$work/main"

expect() {
    [ "$1" = "$2" ] || { echo "check-shims.sh: $3: \`$1\` instead of \`$2\`" >&2; exit 1; }
}
# 385 is the sum of the squares of 1 to 10.
expect "$(LD_LIBRARY_PATH=$work/there "$work/main")" "41 42 200885 200885" "with the library"
# A real driver, where there is one, is not to be asked.
[ -n "$(ldconfig -p 2>/dev/null | grep libcuda.so.1)" ] || expect "$("$work/main")" "100 100 100 100" "without the library"
