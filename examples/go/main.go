// SPDX-License-Identifier: Apache-2.0

// A VMM in Go that serves certificates: vmm FILE VCPUS. The VMM runs an SNP guest until the guest
// shuts down or SIGTERM arrives. A real VMM also loads firmware and has devices, but handles
// KVM_EXIT_SNP_REQ_CERTS in the same way.
package main

/*
#cgo pkg-config: snpcerts
#include <snpcerts.h>

// C memory, which Go neither moves nor collects.
struct snpcerts_slot slots[2];
struct snpcerts_vm certs = { .lock_wait = SNPCERTS_LOCK_WAIT, .slots = slots, .slot_count = 2 };
*/
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	page    = 4096
	low     = 128 * page // the size of the first of two memory slots
	memory  = low + 2048*page
	runSize = 12288
)

var (
	vm, sev  uintptr
	guest    []byte // the guest's memory
	stopping atomic.Bool
)

type vcpu struct {
	fd  uintptr
	run []byte // struct kvm_run
	tid atomic.Int64
}

func sevCommand(id uint64, data ...uint64) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&data[0])
	call(vm, memoryEncryptOp, id, uint64(uintptr(unsafe.Pointer(&data[0]))), uint64(sev)<<32)
}

func host(gpa uint64) uint64 { return uint64(uintptr(unsafe.Pointer(&guest[gpa]))) }

func setPrivate(gpa, size uint64, private bool) {
	attributes := uint64(0)
	if private {
		attributes = 8 // KVM_MEMORY_ATTRIBUTE_PRIVATE
	}
	call(vm, setMemoryAttributes, gpa, size, attributes, 0)
}

func addSlot(number, gpa, size uint64) {
	memfd := call(vm, createGuestMemfd, size, 0, 0, 0, 0, 0, 0, 0)
	region := [20]uint64{number | 4<<32, gpa, size, host(gpa), 0, uint64(memfd)}
	call(vm, setMemoryRegion2, region[:]...)
	C.slots[number] = C.struct_snpcerts_slot{C.uint64_t(gpa), C.uint64_t(size), C.uint64_t(host(gpa))}
}

// changePageState serves KVM_HC_MAP_GPA_RANGE: it makes pages shared or private.
func changePageState(gpa, pages, attributes uint64) uint64 {
	if gpa >= memory || pages > (memory-gpa)/page {
		return uint64(syscall.EINVAL)
	}
	setPrivate(gpa, pages*page, attributes&encrypted != 0)
	if attributes&encrypted != 0 {
		must(syscall.Madvise(guest[gpa:gpa+pages*page], syscall.MADV_DONTNEED), "madvise")
	}
	return 0
}

func (v *vcpu) loop() {
	runtime.LockOSThread()
	v.tid.Store(int64(syscall.Gettid()))
	word := func(offset int) uint64 { return binary.LittleEndian.Uint64(v.run[offset:]) }
	shared := (*C.struct_kvm_run)(unsafe.Pointer(&v.run[0]))
	for !stopping.Load() {
		_, err := ioctl(v.fd, run, 0)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			must(err, "KVM_RUN")
		case bool(C.snpcerts_asks(shared)):
			errno := syscall.Errno(C.snpcerts_serve(&C.certs, C.int(v.fd), shared, nil))
			if errno != 0 && errno != syscall.EINTR {
				must(errno, "KVM_RUN")
			}
		case binary.LittleEndian.Uint32(v.run[8:]) == exitHypercall:
			answer := changePageState(word(40), word(48), word(56))
			binary.LittleEndian.PutUint64(v.run[88:], answer)
		default:
			return
		}
	}
}

// stop waits for SIGTERM, then stops the vCPUs, including those that are about to enter KVM_RUN.
func stop(signals chan os.Signal, vcpus []*vcpu) {
	<-signals
	stopping.Store(true)
	for _, v := range vcpus {
		v.run[1] = 1 // immediate_exit
		if tid := v.tid.Load(); tid != 0 {
			syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(tid), uintptr(syscall.SIGUSR1))
		}
	}
}

func open(path string) uintptr {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	must(err, path)
	return uintptr(fd)
}

func mapped(fd, size, flags int) []byte {
	memory, err := syscall.Mmap(fd, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, flags)
	must(err, "mmap")
	return memory
}

func main() {
	var count int
	var err error
	if len(os.Args) == 3 {
		count, err = strconv.Atoi(os.Args[2])
	}
	if count < 1 || err != nil {
		fmt.Fprintln(os.Stderr, "usage: vmm FILE VCPUS")
		os.Exit(2)
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1) // the signal only makes KVM_RUN return EINTR

	kvm := open("/dev/kvm")
	sev = open("/dev/sev")
	vm, err = ioctl(kvm, createVM, snpVM)
	must(err, "KVM_CREATE_VM")
	sevCommand(sevInit2, 0, 2<<32, 0, 0, 0, 0)
	call(vm, enableCap, capExitHypercall, 1<<hcMapGPARange, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	guest = mapped(-1, memory, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	C.certs.path = C.CString(os.Args[1])
	addSlot(0, 0, low)
	addSlot(1, low, memory-low)
	setPrivate(0, memory, true)

	// After INIT2 and before the first vCPU.
	if bool(C.snpcerts_supported(C.int(kvm))) {
		if errno := C.snpcerts_enable(C.int(vm)); errno != 0 {
			must(syscall.Errno(errno), "KVM_SEV_SNP_ENABLE_REQ_CERTS")
		}
	}
	vcpus := make([]*vcpu, count)
	for i := range vcpus {
		fd, err := ioctl(vm, createVCPU, uintptr(i))
		must(err, "KVM_CREATE_VCPU")
		vcpus[i] = &vcpu{fd: fd, run: mapped(int(fd), runSize, syscall.MAP_SHARED)}
	}
	sevCommand(launchStart, 3<<16, 0, 0, 0, 0, 0, 0, 0)
	sevCommand(launchUpdate, 0, host(0), page, pageNormal, 0, 0, 0, 0)
	sevCommand(launchUpdate, 1, host(page), page, pageSecrets, 0, 0, 0, 0)
	sevCommand(launchFinish, make([]uint64, 11)...)

	go stop(terminated, vcpus)
	var running sync.WaitGroup
	for _, v := range vcpus {
		running.Add(1)
		go func(v *vcpu) {
			defer running.Done()
			v.loop()
		}(v)
	}
	running.Wait()
}
