package message

import "testing"

func FuzzRead(f *testing.F) {
	f.Fuzz(func(t *testing.T, in string, first, second uint8) {
		checkRead(t, in, []int{int(first)%16 + 1, int(second) + 1})
	})
}

func FuzzEdit(f *testing.F) {
	f.Fuzz(func(t *testing.T, in string, op uint8, name, value string, nth int8, name2, value2 string) {
		m := FromString(in)
		m = checkEdit(t, m, FieldEdit{Op: EditOp(op % 8), Name: name, Value: value, Nth: int(nth)})
		checkEdit(t, m, FieldEdit{Op: EditOp(op / 8 % 8), Name: name2, Value: value2, Nth: -int(nth % 2)})
	})
}

func FuzzToSevenBit(f *testing.F) {
	f.Fuzz(func(t *testing.T, in string) { checkConvert(t, FromString(in)) })
}
