/* Maps a .pbag file, prints a row as + and -, and its values:  cc -O2 -o read_pbag read_pbag.c && ./read_pbag t.pbag 7
 * docs/formats.md specifies the format. This reader needs a little-endian machine with 64-bit addresses. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct header { /* every field lies at a multiple of its size: there is no padding */
    char magic[8];
    uint32_t version, crc32;
    uint64_t rows;
    uint32_t dim, words_per_row, bits_per_value, scale_kind; /* 0 none, 1 table, 2 row */
    uint64_t words_at, scale_at, file_bytes;
    uint32_t sha256[8], text_bytes, code; /* version 2 alone has a code: 1 where values are binary numbers */
};

int main(int argc, char **argv) {
    int file = argc == 3 ? open(argv[1], O_RDONLY) : -1;
    struct stat status;
    if (file < 0 || fstat(file, &status)) return fprintf(stderr, "usage: read_pbag FILE ROW\n"), 2;
    const char *map = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, file, 0);
    const struct header *head = (const struct header *)map;
    if (map == MAP_FAILED || status.st_size < 4096 || memcmp(map, "PBAG\r\n\x1a\x80", 8) || head->version - 1 > 1 ||
        head->file_bytes != (uint64_t)status.st_size || (head->version == 2 && head->code > 1))
        return fprintf(stderr, "%s is no whole .pbag file of version 1 or 2\n", argv[1]), 1;
    uint64_t row = strtoull(argv[2], NULL, 10);
    if (row >= head->rows) return fprintf(stderr, "the table has %llu rows\n", (unsigned long long)head->rows), 1;
    const uint32_t *words = (const uint32_t *)(map + head->words_at) + row * head->words_per_row;
    for (uint32_t j = 0; j < head->dim; j++) putchar(words[j / 32] >> (j % 32) & 1 ? '+' : '-');
    const float *scales = (const float *)(map + head->scale_at);
    float scale = head->scale_kind ? scales[head->scale_kind == 1 ? 0 : row] : 1;
    if (head->scale_kind) printf(" %g", scale);
    uint32_t bits = head->bits_per_value, binary = head->version == 2 && head->code == 1;
    for (uint32_t i = 0; bits > 1 && i + bits <= head->dim; i += bits) {
        int sum = 0, all = 0;
        for (uint32_t j = 0; j < bits; j++) {
            int weight = binary ? 1 << j : 1;
            sum += words[(i + j) / 32] >> ((i + j) % 32) & 1 ? weight : -weight;
            all += weight;
        }
        printf("%c%g", i ? ' ' : '\n', sum * scale / all);
    }
    return putchar('\n') == EOF;
}
