// What a warpgroup's product writes to, spelled out as inline assembly wants it: the accumulators of N columns, N / 2 of a
// thread, as operands %0 and on (LIST_N), and as outputs d[i] and on (OUT_N).
#pragma once

#define SIGMOE_LIST_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define SIGMOE_LIST_32 SIGMOE_LIST_16 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define SIGMOE_LIST_48 SIGMOE_LIST_32 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define SIGMOE_LIST_64 SIGMOE_LIST_48 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define SIGMOE_LIST_80 SIGMOE_LIST_64 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define SIGMOE_LIST_96 SIGMOE_LIST_80 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define SIGMOE_LIST_112 SIGMOE_LIST_96 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define SIGMOE_LIST_128 SIGMOE_LIST_112 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define SIGMOE_LIST_136 SIGMOE_LIST_128 ",%64,%65,%66,%67"
#define SIGMOE_LIST_144 SIGMOE_LIST_136 ",%68,%69,%70,%71"
#define SIGMOE_OUT_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIGMOE_OUT_16(i) SIGMOE_OUT_4(i), SIGMOE_OUT_4(i + 4)
#define SIGMOE_OUT_32(i) SIGMOE_OUT_16(i), SIGMOE_OUT_16(i + 8)
#define SIGMOE_OUT_48(i) SIGMOE_OUT_32(i), SIGMOE_OUT_16(i + 16)
#define SIGMOE_OUT_64(i) SIGMOE_OUT_32(i), SIGMOE_OUT_32(i + 16)
#define SIGMOE_OUT_80(i) SIGMOE_OUT_64(i), SIGMOE_OUT_16(i + 32)
#define SIGMOE_OUT_112(i) SIGMOE_OUT_64(i), SIGMOE_OUT_48(i + 32)
#define SIGMOE_OUT_96(i) SIGMOE_OUT_64(i), SIGMOE_OUT_32(i + 32)
#define SIGMOE_OUT_128(i) SIGMOE_OUT_64(i), SIGMOE_OUT_64(i + 32)
#define SIGMOE_OUT_136(i) SIGMOE_OUT_128(i), SIGMOE_OUT_4(i + 64)
#define SIGMOE_OUT_144(i) SIGMOE_OUT_128(i), SIGMOE_OUT_16(i + 64)
