package program

import "strings"

// steering are variables by which loaders, libraries, shells and interpreters let
// whoever sets them choose what a program runs or reads.
var steering = map[string]bool{
	"PATH": true, "IFS": true, "CDPATH": true, "ENV": true, "BASH_ENV": true, "SHELLOPTS": true, "BASHOPTS": true, "PS4": true, "ZDOTDIR": true,
	"GCONV_PATH": true, "GETCONF_DIR": true, "GLIBC_TUNABLES": true, "HOSTALIASES": true, "LOCALDOMAIN": true, "LOCPATH": true,
	"NIS_PATH": true, "NLSPATH": true, "RESOLV_HOST_CONF": true, "RES_OPTIONS": true, "TZDIR": true, "TMPDIR": true, "HOME": true,
	"JAVA_TOOL_OPTIONS": true, "_JAVA_OPTIONS": true, "JDK_JAVA_OPTIONS": true, "CLASSPATH": true, "AWKPATH": true, "AWKLIBPATH": true,
	"NODE_OPTIONS": true, "NODE_PATH": true, "LUA_INIT": true, "LUA_PATH": true, "LUA_CPATH": true, "TCLLIBPATH": true, "PHPRC": true, "PHP_INI_SCAN_DIR": true,
	"OPENSSL_CONF": true, "OPENSSL_MODULES": true, "OPENSSL_ENGINES": true, "TERMCAP": true, "TERMINFO": true, "TERMINFO_DIRS": true, "TERMPATH": true,
}

// steeringFamilies are the beginnings of the names of more of them.
var steeringFamilies = [...]string{"LD_", "BASH_FUNC_", "PERL", "PYTHON", "RUBY", "GEM_", "LUA_INIT_", "LUA_PATH_", "LUA_CPATH_", "KRB5", "GUILE_", "MALLOC_", "DYLD_", "_RLD"}

// Passable reports whether a variable that a program's user has not set, but
// somebody who may tell of a client, can be passed on to the program. Those that
// decide what a program runs cannot: who may tell of a client would be the user
// of the program.
func Passable(name, value string) bool {
	if name == "" || strings.ContainsAny(name, "=\x00") || steering[name] || strings.HasPrefix(value, "() {") {
		return false
	}
	for _, family := range steeringFamilies {
		if strings.HasPrefix(name, family) {
			return false
		}
	}
	return true
}
