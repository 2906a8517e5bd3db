/* SPDX-License-Identifier: Apache-2.0 */
/* What kernel code finds around it, here for one thread in user space. */
#ifndef ORACLE_KERNEL_H
#define ORACLE_KERNEL_H

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef long long s64;
typedef unsigned long ulong;
typedef unsigned int gfp_t;
typedef u64 phys_addr_t;
typedef u64 hpa_t;
typedef u64 gpa_t;
typedef u64 gfn_t;
typedef unsigned long gva_t;
typedef unsigned long hva_t;
typedef u64 kvm_pfn_t;
typedef struct { int counter; } atomic_t;
typedef struct { int unused; } spinlock_t, raw_spinlock_t;
struct list_head { struct list_head *next, *prev; };
struct hlist_node { struct hlist_node *next; };
struct mutex { int held; };
typedef void *cpumask_var_t;
struct file;
struct page;

#define __user
#define __iomem
#define __force
#define __init
#define __packed __attribute__((packed))
#define __aligned(n) __attribute__((aligned(n)))
#define __always_inline inline
#define __maybe_unused __attribute__((unused))
#define __noreturn __attribute__((noreturn))
#define __read_mostly
#define __ro_after_init
#define __printf(a, b)
#define noinstr
#define __cold
#define __head
#define fallthrough __attribute__((fallthrough))
#define likely(x) (x)
#define unlikely(x) (x)
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))
#define barrier() ((void)0)
#define BUILD_BUG_ON(condition) _Static_assert(!(condition), #condition)
#define static_assert(...) _Static_assert(__VA_ARGS__, "")
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define container_of(pointer, type, member) \
	((type *)((char *)(pointer) - offsetof(type, member)))

#define BIT(n) (1ul << (n))
#define BIT_ULL(n) (1ull << (n))
#define BITS_PER_LONG 64
#define GENMASK_ULL(high, low) ((~0ull << (low)) & (~0ull >> (63 - (high))))
#define GENMASK(high, low) ((unsigned long)GENMASK_ULL(high, low))
#define __const_hweight64(x) __builtin_popcountll(x)
#define lower_32_bits(n) ((u32)(n))
#define upper_32_bits(n) ((u32)((u64)(n) >> 32))
#define U64_MAX (~0ull)
#define U32_MAX (~0u)
#define IS_ALIGNED(x, a) (((x) & ((__typeof__(x))(a) - 1)) == 0)
#define ALIGN(x, a) (((x) + (a) - 1) & ~((__typeof__(x))(a) - 1))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a) - 1))
#define PAGE_SHIFT 12
#define PAGE_SIZE (1ul << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define PAGE_ALIGN(x) ALIGN(x, PAGE_SIZE)
#define PAGE_ALIGNED(x) IS_ALIGNED((unsigned long)(x), PAGE_SIZE)
#define PMD_SIZE (1ul << 21)
#define PTRS_PER_PMD 512
#define min(a, b) ({ __typeof__(a) _a = (a); __typeof__(b) _b = (b); _a < _b ? _a : _b; })
#define max(a, b) ({ __typeof__(a) _a = (a); __typeof__(b) _b = (b); _a > _b ? _a : _b; })
#define min_t(type, a, b) min((type)(a), (type)(b))
#define check_mul_overflow(a, b, to) __builtin_mul_overflow(a, b, to)
#define check_add_overflow(a, b, to) __builtin_add_overflow(a, b, to)

static inline bool test_bit(long bit, const volatile void *at)
{
	return ((const volatile u8 *)at)[bit / 8] >> bit % 8 & 1;
}
static inline void __set_bit(long bit, volatile void *at)
{
	((volatile u8 *)at)[bit / 8] |= 1 << bit % 8;
}

#define GFP_KERNEL 0
#define GFP_KERNEL_ACCOUNT 0
#define __GFP_ZERO 0
#define __GFP_NOWARN 0
#define KMALLOC_MAX (4ul << 20) /* the most that the page allocator gives */
#define kzalloc(size, flags) ((size) > KMALLOC_MAX ? NULL : calloc(1, size))
#define kvzalloc(size, flags) calloc(1, size)
#define kmalloc(size, flags) calloc(1, size)
#define kzalloc_obj(object, ...) calloc(1, sizeof(object))
#define kfree(pointer) free((void *)(pointer))
#define kvfree(pointer) free((void *)(pointer))
#define kfree_sensitive(pointer) free((void *)(pointer))
#define ERR_PTR(error) ((void *)(long)(error))
#define PTR_ERR(pointer) ((long)(pointer))
#define IS_ERR(pointer) ((unsigned long)(pointer) > -4096ul)
#define IS_ERR_OR_NULL(pointer) (!(pointer) || IS_ERR(pointer))
#define u64_to_user_ptr(x) ((void *)(uintptr_t)(x))
#define EXPORT_SYMBOL_GPL(name)
#define EXPORT_SYMBOL_FOR_KVM_INTERNAL(name)

/* One thread: locks only have to balance. */
#define mutex_lock(lock) ((lock)->held++)
#define mutex_unlock(lock) ((lock)->held--)
#define lockdep_assert_held(lock) ((void)(lock))
static inline void unlock_at_end(struct mutex **lock)
{
	mutex_unlock(*lock);
}
#define guard(kind) guard_##kind
#define guard_mutex(lock) \
	struct mutex *__attribute__((cleanup(unlock_at_end), unused)) guarded = (lock); \
	mutex_lock(guarded)

/* WARN counts as an outcome, to be compared; BUG ends the child process that runs this code. */
extern int oracle_warnings;
#define WARN_ON(condition) ({ bool _warn = !!(condition); oracle_warnings += _warn; _warn; })
#define WARN_ON_ONCE WARN_ON
#define WARN_ONCE(condition, ...) WARN_ON(condition)
#define WARN(condition, ...) WARN_ON(condition)
#define BUG() abort()
#define BUG_ON(condition) do { if (condition) abort(); } while (0)
#define pr_err(...) ((void)0)
#define pr_warn(...) ((void)0)
#define pr_warn_ratelimited(...) ((void)0)
#define pr_err_ratelimited(...) ((void)0)
#define pr_info(...) ((void)0)
#define pr_debug(...) ((void)0)
#define pr_notice(...) ((void)0)
#define dev_err(...) ((void)0)
#define dev_dbg(...) ((void)0)
#define dev_info(...) ((void)0)
#define dev_warn(...) ((void)0)
#define dev_alert(...) ((void)0)
#define dev_notice(...) ((void)0)

#endif
