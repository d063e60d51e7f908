// What a screen reader is told of changes that happen without a click.

class News {
  text = $state('');

  say(text: string): void {
    this.text = text;
  }
}

export const news = new News();
