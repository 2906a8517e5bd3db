// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// From <linux/kvm.h> and <asm/kvm.h> of Linux 7.0.
const (
	createVM            = 0xAE01
	createVCPU          = 0xAE41
	setMemoryRegion2    = 0x40A0AE49
	run                 = 0xAE80
	enableCap           = 0x4068AEA3
	memoryEncryptOp     = 0xC008AEBA
	setMemoryAttributes = 0x4020AED2
	createGuestMemfd    = 0xC040AED4

	snpVM, sevInit2                         = 4, 22
	launchStart, launchUpdate, launchFinish = 100, 101, 102
	pageNormal, pageSecrets                 = 1, 5
	capExitHypercall, hcMapGPARange         = 201, 12
	exitHypercall                           = 3
	encrypted                               = 1 << 4
)

func must(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

func ioctl(fd, request, argument uintptr) (uintptr, error) {
	result, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, argument)
	if errno != 0 {
		return 0, errno
	}
	return result, nil
}

// call issues an ioctl whose argument is a structure, passed as 64-bit words.
func call(fd, request uintptr, words ...uint64) uintptr {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&words[0])
	result, err := ioctl(fd, request, uintptr(unsafe.Pointer(&words[0])))
	must(err, fmt.Sprintf("ioctl %#x", request))
	return result
}
