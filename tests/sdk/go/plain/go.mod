module seks.example/plain

go 1.21
