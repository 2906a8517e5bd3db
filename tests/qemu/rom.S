/* SPDX-License-Identifier: Apache-2.0
 *
 * Guest firmware that asks for certificates in ROUNDS rounds. In each, it asks first with
 * a buffer of PAGES pages, then with as many pages as the answer names. It writes to the
 * debug console, for each answer, ret and pages (1 byte each), and after the second answer
 * the pages' content. It ends the VM through port 0x501.
 *
 * It runs in real mode, in the last 64 KiB below 4 GiB. The code is followed by what QEMU
 * expects in an SNP guest's firmware: the SEV metadata, and a table of GUIDs that leads to it.
 */
	.code16
	.set CONSOLE, 0x402
	.set EXIT, 0x501
	.set REQUEST, 0x5C0
	.set BUFFER, 0x20000
	.set table_size, 22 + 22 + 18

start:
	cli
	mov $ROUNDS, %bp
	mov $(BUFFER >> 4), %ax
	mov %ax, %ds
	mov %ax, %es
round:
	mov $PAGES, %ecx
	call request
	movzbl %bl, %ecx
	call request
	/* Write the pages to the console. */
	mov $CONSOLE, %dx
	xor %esi, %esi
	shl $12, %ecx
	cld
	rep outsb
	dec %bp
	jnz round
	mov $EXIT, %dx
	mov $0x10, %al
	out %al, %dx
1:	hlt
	jmp 1b

request:			/* ask with ECX pages; return ret in AL, pages in BL */
	mov $BUFFER, %ebx
	test %ecx, %ecx
	jz 2f
	push %ecx		/* overwrite an earlier table */
	xor %di, %di
	mov $0xEE, %al
	mov $0x8000, %cx
	cld
	rep stosb
	pop %ecx
2:	mov $REQUEST, %dx
	out %al, %dx
	cmp $28, %al		/* ENOSPC: KVM has set the number of pages */
	je 3f
	mov %cl, %bl
3:	mov $CONSOLE, %dx
	out %al, %dx
	xchg %al, %bl
	out %al, %dx
	xchg %al, %bl
	ret

	/* "SEV metadata": which pages the loader has to prepare. */
	.org 0xF000
metadata:
	.ascii "ASEV"
	.long metadata_end - metadata, 1, 3
	.long 0x10000, 0x1000, 1	/* validated memory */
	.long 0x11000, 0x1000, 2	/* secrets */
	.long 0x12000, 0x1000, 3	/* CPUID */
metadata_end:

	/* QEMU reads the table backwards. An entry is: data, the entry's length, GUID. */
	.org 0x10000 - 32 - table_size
table:
	.long 0xFFFFFFF0		/* where other vCPUs start */
	.word 22
	.byte 0xde, 0x71, 0xf7, 0x00, 0x7e, 0x1a, 0xcb, 0x4f
	.byte 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e
	.long 0x10000 - 0xF000		/* the metadata, from the end */
	.word 22
	.byte 0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47
	.byte 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc
	.word table_size
	.byte 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45
	.byte 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d

	.org 0xFFF0
	jmp start
	.org 0x10000
