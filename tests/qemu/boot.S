/* SPDX-License-Identifier: Apache-2.0
 *
 * A boot sector that writes a letter to the debug console, makes 1,000 more port writes
 * that its VMM must handle, and ends the VM through port 0x501.
 */
	.code16
	mov $0x402, %dx
	mov $'B', %al
	out %al, %dx
	mov $1000, %cx
1:	mov $'.', %al
	out %al, %dx
	loop 1b
	mov $0x501, %dx
	mov $0x10, %al
	out %al, %dx
2:	hlt
	jmp 2b
	.org 510
	.word 0xAA55
