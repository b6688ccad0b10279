package execban

import "strings"

// Encoders for what no library writes any more.

func uu(s string) string {
	const letters = "`!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_"
	var b strings.Builder
	for len(s) > 0 {
		n := min(45, len(s))
		line := s[:n] + "\x00\x00"
		b.WriteByte(letters[n])
		for i := 0; i < n; i += 3 {
			b.Write([]byte{letters[line[i]>>2], letters[line[i]<<4&63|line[i+1]>>4], letters[line[i+1]<<2&63|line[i+2]>>6], letters[line[i+2]&63]})
		}
		b.WriteByte('\n')
		s = s[n:]
	}
	return b.String() + "`\n"
}

func yEnc(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i] + 42; c {
		case 0, '\n', '\r', '=', '.':
			b.Write([]byte{'=', c + 64})
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func binHex(name, data string) string {
	const letters = "!\"#$%&'()*+,-012345689@ABCDEFGHIJKLMNPQRSTUVXYZ[`abcdefhijklmpqr"
	n := len(data)
	file := string([]byte{byte(len(name))}) + name + "\x00APPL????\x00\x00" +
		string([]byte{0, 0, byte(n >> 8), byte(n), 0, 0, 0, 0}) + "\x00\x00" + data + "\x00\x00\x00\x00"
	file = strings.ReplaceAll(file, "\x90", "\x90\x00")
	var runs strings.Builder
	for i := 0; i < len(file); {
		k := i + 1
		for k < len(file) && file[k] == file[i] && k-i < 255 {
			k++
		}
		runs.WriteByte(file[i])
		if k-i > 3 && file[i] != 0x90 {
			runs.Write([]byte{0x90, byte(k - i)})
		} else {
			k = i + 1
		}
		i = k
	}
	var b strings.Builder
	acc, have, column := 0, 0, 1
	for i := range runs.Len() {
		acc, have = acc<<8|int(runs.String()[i]), have+8
		for have >= 6 {
			have -= 6
			b.WriteByte(letters[acc>>have&63])
			if column++; column%64 == 0 {
				b.WriteByte('\n')
			}
		}
	}
	if have > 0 {
		b.WriteByte(letters[acc<<(6-have)&63])
	}
	return b.String()
}
