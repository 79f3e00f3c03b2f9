// SPDX-License-Identifier: MIT
/* The machine code of the interception: dlsym and dlvsym as tail calls, and two entries for each function of functions.def. */

/*
 * For the function with index N:
 *
 * - its stub, at cudapool_stubs + N * CUDAPOOL_STUB_SIZE, is what dlsym and cuGetProcAddress hand out. It
 *   jumps to the driver's function, cudapool_real[N], which was stored before the stub was given to anyone;
 *   or to the wrapper; or, if it is a HELD one, enters the gate (gate.h), calls the driver's function with a copy of
 *   the arguments that are on the stack, and leaves the gate. Before the application's cuInit it calls cudapool_early
 *   (init.c) instead, unless the wrapper is of use even then.
 * - its export, NAME@libcuda.so.1, is what a program that links libcuda directly is bound to. It jumps to
 *   cudapool_entry[N], which the first call finds out: the stub, or the function of another library that stands
 *   between us and the driver.
 *
 * The exports have the driver's version, but not as the default one (one @). The loader binds to such a symbol
 * what was linked against a libcuda with that version, and, as it is our first version, what was linked against one
 * without any. But dlsym does not find it: dlsym(RTLD_DEFAULT, "cuInit") must stay NULL in a process without CUDA, and
 * find the driver's own in one with it.
 *
 * No table of pointers anywhere: it would have to be relocated in every process that never uses CUDA.
 */
#include "stub_size.h"

/* Wrappers that are of use before the application's cuInit. */
	.set works_early_cuInit, 1
	.set works_early_cuGetProcAddress, 1
	.set works_early_cuGetProcAddress_v2, 1
	.set works_early_cuGetProcAddress_v2_ptsz, 1

#if defined(__x86_64__)

/* Keeps what a function may have been given in registers, calls `function`, leaves its result in r11. */
.macro call_keeping function, setup:vararg
	push %rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	mov %rsp, %rbp
	.cfi_def_cfa_register %rbp
	and $-16, %rsp
	sub $192, %rsp
	mov %rdi, (%rsp)
	mov %rsi, 8(%rsp)
	mov %rdx, 16(%rsp)
	mov %rcx, 24(%rsp)
	mov %r8, 32(%rsp)
	mov %r9, 40(%rsp)
	mov %rax, 48(%rsp)
	movaps %xmm0, 64(%rsp)
	movaps %xmm1, 80(%rsp)
	movaps %xmm2, 96(%rsp)
	movaps %xmm3, 112(%rsp)
	movaps %xmm4, 128(%rsp)
	movaps %xmm5, 144(%rsp)
	movaps %xmm6, 160(%rsp)
	movaps %xmm7, 176(%rsp)
	\setup
	call \function
	mov %rax, %r11
	movaps 176(%rsp), %xmm7
	movaps 160(%rsp), %xmm6
	movaps 144(%rsp), %xmm5
	movaps 128(%rsp), %xmm4
	movaps 112(%rsp), %xmm3
	movaps 96(%rsp), %xmm2
	movaps 80(%rsp), %xmm1
	movaps 64(%rsp), %xmm0
	mov 48(%rsp), %rax
	mov 40(%rsp), %r9
	mov 32(%rsp), %r8
	mov 24(%rsp), %rcx
	mov 16(%rsp), %rdx
	mov 8(%rsp), %rsi
	mov (%rsp), %rdi
	leave
	.cfi_def_cfa %rsp, 8
	.cfi_restore %rbp
.endm

/*
 * RTLD_NEXT and RTLD_DEFAULT are relative to the address that dlsym returns to. So the real one is not called
 * but jumped to, with the stack and the arguments as they were; on_* returns what is to be given back
 * instead, or NULL.
 */
.macro lookup name, caller_register
	.globl \name
	.type \name, %function
	.balign 16
\name:
	.cfi_startproc
	call_keeping cudapool_on_\name, mov 8(%rbp), \caller_register
	test %r11, %r11
	jne 1f
	mov cudapool_real_\name(%rip), %r11
	test %r11, %r11
	je 1f
	jmp *%r11
1:	mov %r11, %rax
	ret
	.cfi_endproc
	.size \name, . - \name
.endm

.macro bind_first_call
	.cfi_startproc
	call_keeping cudapool_bind, mov %r11d, %edi
	jmp *%r11
	.cfi_endproc
.endm

.macro refuse
	mov $3, %eax /* CUDA_ERROR_NOT_INITIALIZED */
	ret
.endm

/* rbp, the index and the way back are below the first argument on the stack. */
.macro early_arguments
	mov 8(%rbp), %rdi
	mov %rsp, %rsi
	lea 24(%rbp), %rdx
.endm

/* Jumped to from a stub, which is begun again if there is no answer. */
.macro early
	.cfi_startproc
	push %r11
	.cfi_adjust_cfa_offset 8
	call_keeping cudapool_early, early_arguments
	.cfi_def_cfa_offset 16
	pop %r10
	.cfi_adjust_cfa_offset -8
	test %r11, %r11
	js 1f
	mov %r11d, %eax
	ret
1:	imul $CUDAPOOL_STUB_SIZE, %r10, %r10
	lea cudapool_stubs(%rip), %r11
	add %r10, %r11
	jmp *%r11
	.cfi_endproc
.endm

.macro early_call
	mov $index, %r11d
	jmp cudapool_early_keeping
.endm

.macro gated_stub name
	cmpb $0, cudapool_state(%rip)
	je 1f
	jmp *(cudapool_real + 8 * index)(%rip)
1:	early_call
.endm

.macro wrapped_stub name
.ifndef works_early_\name
	cmpb $0, cudapool_state(%rip)
	je 1f
.endif
	jmp cudapool_wrap_\name
.ifndef works_early_\name
1:	early_call
.endif
.endm

/*
 * The first half is cudapool_gate_enter() of gate.h, with app_inited, which must be 1, and closed, which must be 0,
 * looked at in one go; slot->depth is at 0, slot->self at 8. r10 and r11 are nobody's. The stack is a multiple of 16 at
 * a call, so it is a word off at our entry.
 */
.macro held_stub name, words
	mov cudapool_slot@gottpoff(%rip), %r11
	mov %fs:(%r11), %r11
	test %r11, %r11
	je 3f
	mov %fs:0, %r10
	cmp %r10, 8(%r11)
	jne 3f
	incl (%r11)
	cmpw $1, cudapool_state(%rip)
	jne 2f
1:
.if (\words) % 2
	sub $8, %rsp
	.cfi_adjust_cfa_offset 8
.endif
	push %r11
	.cfi_adjust_cfa_offset 8
.rept \words
	pushq ((\words) + 1 + (\words) % 2) * 8(%rsp)
	.cfi_adjust_cfa_offset 8
.endr
	call *(cudapool_real + 8 * index)(%rip)
	mov ((\words) * 8)(%rsp), %r11
	decl (%r11)
	add $(((\words) + 1 + (\words) % 2) * 8), %rsp
	.cfi_adjust_cfa_offset -(((\words) + 1 + (\words) % 2) * 8)
	ret
2:	decl (%r11)
3:	call cudapool_held_slowly
	test %r11, %r11
	jne 1b
	early_call
.endm

.macro export_entry
	mov (cudapool_entry + 8 * index)(%rip), %r11
	test %r11, %r11
	je 1f
	jmp *%r11
1:	mov $index, %r11d
	jmp cudapool_bind_first_call
.endm

#define CALLER_OF_DLSYM	 %rdx
#define CALLER_OF_DLVSYM %rcx

#elif defined(__aarch64__)

/* Keeps what a function may have been given in registers, calls `function`, leaves its result in x16. */
.macro call_keeping function, setup:vararg
	stp x29, x30, [sp, #-224]!
	.cfi_adjust_cfa_offset 224
	.cfi_rel_offset x29, 0
	.cfi_rel_offset x30, 8
	mov x29, sp
	stp x0, x1, [sp, #16]
	stp x2, x3, [sp, #32]
	stp x4, x5, [sp, #48]
	stp x6, x7, [sp, #64]
	str x8, [sp, #80]
	stp q0, q1, [sp, #96]
	stp q2, q3, [sp, #128]
	stp q4, q5, [sp, #160]
	stp q6, q7, [sp, #192]
	\setup
	bl \function
	mov x16, x0
	ldp q6, q7, [sp, #192]
	ldp q4, q5, [sp, #160]
	ldp q2, q3, [sp, #128]
	ldp q0, q1, [sp, #96]
	ldr x8, [sp, #80]
	ldp x6, x7, [sp, #64]
	ldp x4, x5, [sp, #48]
	ldp x2, x3, [sp, #32]
	ldp x0, x1, [sp, #16]
	ldp x29, x30, [sp], #224
	.cfi_adjust_cfa_offset -224
	.cfi_restore x29
	.cfi_restore x30
.endm

/* See the x86-64 one. */
.macro lookup name, caller_register
	.globl \name
	.type \name, %function
	.balign 16
\name:
	.cfi_startproc
	call_keeping cudapool_on_\name, mov \caller_register, x30
	cbnz x16, 1f
	adrp x16, cudapool_real_\name
	ldr x16, [x16, #:lo12:cudapool_real_\name]
	cbz x16, 1f
	br x16
1:	mov x0, x16
	ret
	.cfi_endproc
	.size \name, . - \name
.endm

.macro bind_first_call
	.cfi_startproc
	call_keeping cudapool_bind, mov w0, w17
	br x16
	.cfi_endproc
.endm

.macro refuse
	mov w0, #3 /* CUDA_ERROR_NOT_INITIALIZED */
	ret
.endm

/* See the x86-64 ones. */
.macro early_arguments
	ldr x0, [sp, #224]
	add x1, sp, #16
	add x2, sp, #(224 + 16)
.endm

.macro early
	.cfi_startproc
	str x17, [sp, #-16]!
	.cfi_adjust_cfa_offset 16
	call_keeping cudapool_early, early_arguments
	ldr x17, [sp], #16
	.cfi_adjust_cfa_offset -16
	tbnz x16, #63, 1f
	mov w0, w16
	ret
1:	mov w16, #CUDAPOOL_STUB_SIZE
	mul w17, w17, w16
	adrp x16, cudapool_stubs
	add x16, x16, #:lo12:cudapool_stubs
	add x16, x16, x17
	br x16
	.cfi_endproc
.endm

.macro early_call
	mov w17, #index
	b cudapool_early_keeping
.endm

.macro gated_stub name
	adrp x16, cudapool_state
	ldrb w16, [x16, #:lo12:cudapool_state]
	cbz w16, 1f
	adrp x16, cudapool_real + 8 * index
	ldr x16, [x16, #:lo12:cudapool_real + 8 * index]
	br x16
1:	early_call
.endm

.macro wrapped_stub name
.ifndef works_early_\name
	adrp x16, cudapool_state
	ldrb w16, [x16, #:lo12:cudapool_state]
	cbz w16, 1f
.endif
	b cudapool_wrap_\name
.ifndef works_early_\name
1:	early_call
.endif
.endm

/*
 * See the x86-64 one. What is above the stack pointer is copied as far as x86-64 would need it: eight arguments are in
 * registers here, and structures are passed by their address, so it is always enough. x9, x10, x16 and x17 are nobody's.
 */
.macro held_stub name, words
	adrp x16, :gottprel:cudapool_slot
	ldr x16, [x16, #:gottprel_lo12:cudapool_slot]
	mrs x17, tpidr_el0
	ldr x16, [x16, x17]
	cbz x16, 3f
	ldr x9, [x16, #8]
	cmp x9, x17
	b.ne 3f
	ldr w9, [x16]
	add w9, w9, #1
	str w9, [x16]
	adrp x9, cudapool_state
	ldrh w9, [x9, #:lo12:cudapool_state]
	cmp w9, #1
	b.ne 2f
1:	stp x29, x30, [sp, #-32]!
	.cfi_adjust_cfa_offset 32
	.cfi_rel_offset x29, 0
	.cfi_rel_offset x30, 8
	mov x29, sp
	.cfi_def_cfa_register x29
	str x16, [x29, #16]
.if \words
	sub sp, sp, #(((\words) + 1) / 2 * 16)
	.set word, 0
.rept ((\words) + 1) / 2
	ldp x9, x10, [x29, #(32 + 8 * word)]
	stp x9, x10, [sp, #(8 * word)]
	.set word, word + 2
.endr
.endif
	adrp x16, cudapool_real + 8 * index
	ldr x16, [x16, #:lo12:cudapool_real + 8 * index]
	blr x16
	ldr x16, [x29, #16]
	ldr w9, [x16]
	sub w9, w9, #1
	stlr w9, [x16]
	mov sp, x29
	.cfi_def_cfa_register sp
	ldp x29, x30, [sp], #32
	.cfi_adjust_cfa_offset -32
	.cfi_restore x29
	.cfi_restore x30
	ret
2:	ldr w9, [x16]
	sub w9, w9, #1
	str w9, [x16]
3:	stp x29, x30, [sp, #-16]!
	.cfi_adjust_cfa_offset 16
	.cfi_rel_offset x29, 0
	.cfi_rel_offset x30, 8
	bl cudapool_held_slowly
	ldp x29, x30, [sp], #16
	.cfi_adjust_cfa_offset -16
	.cfi_restore x29
	.cfi_restore x30
	cbnz x16, 1b
	early_call
.endm

.macro export_entry
	adrp x16, cudapool_entry + 8 * index
	ldr x16, [x16, #:lo12:cudapool_entry + 8 * index]
	cbz x16, 1f
	br x16
1:	mov w17, #index
	b cudapool_bind_first_call
.endm

#define CALLER_OF_DLSYM	 x2
#define CALLER_OF_DLVSYM x3

#else
#error "the shim is written for x86-64 and aarch64"
#endif

	.text
	lookup dlsym, CALLER_OF_DLSYM
	lookup dlvsym, CALLER_OF_DLVSYM

	.balign 16
	.type cudapool_bind_first_call, %function
cudapool_bind_first_call:
	bind_first_call
	.size cudapool_bind_first_call, . - cudapool_bind_first_call

	.balign 16
	.type cudapool_held_slowly, %function
cudapool_held_slowly:
	.cfi_startproc
	call_keeping cudapool_held_enter
	ret
	.cfi_endproc
	.size cudapool_held_slowly, . - cudapool_held_slowly

	.balign 16
	.type cudapool_early_keeping, %function
cudapool_early_keeping:
	early
	.size cudapool_early_keeping, . - cudapool_early_keeping

	.balign 16
	.globl cudapool_refuse
	.hidden cudapool_refuse
	.type cudapool_refuse, %function
cudapool_refuse:
	.cfi_startproc
	refuse
	.cfi_endproc
	.size cudapool_refuse, . - cudapool_refuse

/* The stubs. */
/* .org refuses to go back, so a stub that is too long does not pass. */
#define GATED(name)	  stub; gated_stub name;
#define HELD(name, words) stub; held_stub name, words;
#define WRAPPED(name)	  stub; wrapped_stub name;
.macro stub
	.set index, index + 1
	.org cudapool_stubs + index * CUDAPOOL_STUB_SIZE, 0xcc
.endm
	.balign CUDAPOOL_STUB_SIZE
	.globl cudapool_stubs
	.hidden cudapool_stubs
	.type cudapool_stubs, %function
cudapool_stubs:
	.cfi_startproc
	.set index, -1
#include "functions.def"
	.set index, index + 1
	.org cudapool_stubs + index * CUDAPOOL_STUB_SIZE, 0xcc
	.cfi_endproc
	.size cudapool_stubs, . - cudapool_stubs

/* The exports. */
.macro export name
	.balign 16
	.globl cudapool_export_\name
	.type cudapool_export_\name, %function
	.symver cudapool_export_\name, \name@libcuda.so.1
cudapool_export_\name:
	export_entry
	.size cudapool_export_\name, . - cudapool_export_\name
	.set index, index + 1
.endm
#define GATED(name) export name;
	.cfi_startproc
	.set index, 0
#include "functions.def"
	.cfi_endproc

	.section .note.GNU-stack, "", %progbits
