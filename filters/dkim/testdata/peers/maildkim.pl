# Mail::DKIM as a peer: maildkim.pl verify DNS FILE..., or
# maildkim.pl sign KEY HEADER BODY SELECTOR DOMAIN FILE...
#
# DNS has a line for each record: the name, a blank, the text. verify prints a
# line for each file: the results of its signatures. sign writes FILE.signed.
use strict;
use warnings;
use Mail::DKIM::DNS;
use Mail::DKIM::Signer;
use Mail::DKIM::Verifier;
use Net::DNS;

sub slurp {
    my ($path) = @_;
    open my $f, '<:raw', $path or die "$path: $!";
    local $/;
    return scalar <$f>;
}

sub feed {
    my ( $dkim, $text ) = @_;
    $text =~ s/\n/\r\n/g;
    $dkim->PRINT($text);
    $dkim->CLOSE;
}

my $command = shift;
if ( $command eq 'verify' ) {
    my %known = map { /^(\S+) (.*)/ ? ( lc $1 => $2 ) : () } split /\n/, slurp(shift);
    no warnings 'redefine';
    *Mail::DKIM::DNS::query = sub {
        my ($name) = @_;
        my $text = $known{ lc $name } or do { $@ = 'NXDOMAIN'; return };
        return Net::DNS::RR->new( name => $name, type => 'TXT', txtdata => [ unpack '(a250)*', $text ] );
    };
    for my $path (@ARGV) {
        my $dkim = Mail::DKIM::Verifier->new;
        feed( $dkim, slurp($path) );
        print join( ' ', $path, map { $_->result } $dkim->signatures ), "\n";
    }
}
else {
    my ( $key, $header, $body, $selector, $domain ) = splice @ARGV, 0, 5;
    for my $path (@ARGV) {
        my $dkim = Mail::DKIM::Signer->new(
            Algorithm => 'rsa-sha256',
            Method    => "$header/$body",
            Domain    => $domain,
            Selector  => $selector,
            KeyFile   => $key,
        );
        my $text = slurp($path);
        feed( $dkim, $text );
        my $field = $dkim->signature->as_string;
        $field =~ s/\r\n/\n/g;
        open my $f, '>:raw', "$path.signed" or die "$path: $!";
        print $f "$field\n$text";
        close $f or die "$path: $!";
    }
}
