package smtp

import "github.com/postern-mta/postern/pipeline/reply"

// The answers to commands that are as they should be, whole lines.
const (
	saidMail  = "250 2.1.0 ok\r\n"
	saidRcpt  = "250 2.1.5 ok\r\n"
	saidData  = "354 go ahead, end with <CRLF>.<CRLF>\r\n"
	saidReset = "250 2.0.0 flushed\r\n"
	saidNoop  = "250 2.0.0 ok\r\n"
	saidVrfy  = "252 2.1.5 cannot verify, but will take mail for it and try\r\n"
	saidHelp  = "214 2.0.0 this is Postern, see RFC 5321\r\n"
	saidQuit  = "221 2.0.0 bye\r\n"
	saidLogin = "235 2.7.0 welcome\r\n"
	saidTLS   = "220 2.0.0 ready to start TLS\r\n"
)

// no makes an answer of the tables below.
func no(code int, subject, detail uint16, text string) reply.Reply {
	return reply.Make(code, reply.Enhanced{Subject: subject, Detail: detail}, text)
}

// The answers to what cannot be done.
var (
	tooBusy      = no(421, 3, 2, "too many connections here, please try again later")
	stopping     = no(421, 3, 2, "closing down, please try again later")
	timedOut     = no(421, 4, 2, "timed out, closing the connection")
	tooLong      = no(421, 4, 2, "session too long, please connect again")
	tooManyBad   = no(421, 7, 0, "too many errors, closing the connection")
	tooManyIdle  = no(421, 7, 0, "too many commands that lead nowhere, closing the connection")
	tooManyMails = no(421, 7, 0, "too many messages in one session, please connect again")
	earlyTalker  = no(554, 5, 1, "you spoke before my greeting")
	notSMTP      = no(554, 5, 1, "this is a mail server, and that was not SMTP")

	unknownCommand = no(500, 5, 1, "command not recognized")
	notImplemented = no(502, 5, 1, "command not implemented")
	lineTooLong    = no(500, 5, 2, "line too long")
	bareInLine     = no(500, 5, 2, "bare CR, bare LF or NUL in a command")
	noArguments    = no(501, 5, 4, "this command takes no arguments")
	needsArgument  = no(501, 5, 4, "this command needs an argument")
	badMailSyntax  = no(501, 5, 4, "say MAIL FROM:<address>")
	badRcptSyntax  = no(501, 5, 4, "say RCPT TO:<address>")
	badHelo        = no(501, 5, 4, "that is no host name")
	badChunk       = no(501, 5, 4, "say BDAT size, perhaps LAST; closing the connection")
	helloFirst     = no(503, 5, 1, "say EHLO first")
	lhloFirst      = no(503, 5, 1, "say LHLO first")
	badSequence    = no(503, 5, 1, "bad sequence of commands")
	noRecipients   = no(554, 5, 1, "no valid recipients")
	noTransaction  = no(503, 5, 1, "no message is being sent, chunk dropped")

	splitPlease    = no(452, 5, 3, "this recipient needs a message of its own, please send it separately")
	tooManyRcpts   = no(452, 5, 3, "too many recipients, please send the message to the rest separately")
	noRelay        = no(550, 7, 1, "we do not relay mail for you")
	needsLogin     = no(530, 7, 0, "authentication required")
	needsTLS       = no(530, 7, 0, "say STARTTLS first")
	noTLSYet       = no(454, 7, 0, "TLS is not available at the moment, please try again later")
	hasTLS         = no(503, 5, 1, "TLS has been started")
	afterStartTLS  = no(554, 5, 1, "nothing may follow STARTTLS before the handshake")
	loggedIn       = no(503, 5, 1, "you have logged in")
	authNeedsTLS   = no(538, 7, 11, "encryption required for this, say STARTTLS first")
	authUnknown    = no(504, 5, 4, "authentication mechanism not recognized")
	authCancelled  = no(501, 7, 0, "authentication cancelled")
	authBadCode    = no(501, 5, 2, "that is not base64")
	authFailed     = no(535, 7, 8, "wrong user or password")
	authTrouble    = no(454, 7, 0, "temporary trouble with authentication, please try again later")
	tooManyLogins  = no(421, 7, 0, "too many failed logins, closing the connection")
	xclientDenied  = no(550, 7, 1, "you may not say XCLIENT")
	xclientSyntax  = no(501, 5, 4, "bad XCLIENT attribute")
	tooSlow        = no(451, 3, 0, "this took too long here, please try again later")
	noConfigToGive = no(421, 3, 5, "temporary trouble here, please try again later")
)
