// SPDX-License-Identifier: Apache-2.0

// A static program without a C library: storm THREADS CALLS. THREADS goroutines, each
// on its own thread, make CALLS calls each, while the process sends signals to itself.
// Prints how many answers were wrong.
package main

import (
	"encoding/binary"
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
	echo = 0xC010AE10
	key  = 0x5EED5EED5EED5EED
)

func main() {
	threads, _ := strconv.Atoi(os.Args[1])
	calls, _ := strconv.Atoi(os.Args[2])
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	signals := make(chan os.Signal, 1024)
	signal.Notify(signals, syscall.SIGUSR1)
	var wrong, done atomic.Int64
	var all sync.WaitGroup
	for thread := 0; thread < threads; thread++ {
		all.Add(1)
		go func(first uint64) {
			runtime.LockOSThread()
			defer all.Done()
			defer done.Add(1)
			buffer := make([]byte, 16)
			for number := first; number < first+uint64(calls); number++ {
				binary.LittleEndian.PutUint64(buffer, number)
				result, _, code := syscall.Syscall(syscall.SYS_IOCTL, device.Fd(), echo,
					uintptr(unsafe.Pointer(&buffer[0])))
				answer := binary.LittleEndian.Uint64(buffer[8:])
				if code != 0 || uint64(result) != number%1000 || answer != number^key {
					wrong.Add(1)
				}
			}
		}(uint64(thread * calls))
	}
	for done.Load() < int64(threads) {
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		runtime.Gosched()
	}
	all.Wait()
	fmt.Println(wrong.Load())
}
