module generator

go 1.22
