module snpcerts.example/vmm

go 1.21
